"""A run as a checkpoint of transformers' own class, with its processor: needs nothing of mmloom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from etl.storage.schema import PLACEHOLDERS
from model.build import published_tokenizer
from model.convert.layouts import Layout
from model.exported import ADAPTER
from model.spec import Lora
from model.spec.peft import QLora
from model.weights import Weights
from pipeline.convert.peft_folder import write_lora
from pipeline.convert.processors import write_processor
from pipeline.convert.safetensors_store import LazyTensor, write_tensors
from pipeline.convert.trained_model import TrainedModel
from pipeline.data.encode import SampleEncoder

IMAGE_TOKEN = PLACEHOLDERS["image"]


def write_layout(layout: Layout, model: TrainedModel, output: Path, *, weights: Weights) -> str:
    """Write a model as a transformers checkpoint with processor, template and generation settings.

    Args:
        layout: its class, configuration and names.
        model: the trained one.
        output: an existing folder.
        weights: where its tokenizer comes from, as of the run.

    Returns:
        A line with the number and size of the tensors.
    """
    tokenizer = published_tokenizer(model.spec, weights=weights)
    write_processor(layout, model, tokenizer, output, weights=weights)
    token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    layout.config.image_token_index = token
    layout.config.text_config.vocab_size = max(model.spec.backbone.vocabulary, token + 1)
    theirs = layout.build()
    tensors = dict(_tensors(layout, theirs, model))
    size = write_tensors(output, tensors)
    layout.config.architectures, layout.config.dtype = [layout.architecture], model.dtype
    layout.config.save_pretrained(output)
    _generation_config(model, tokenizer).save_pretrained(output)
    if isinstance(model.stage.peft, Lora | QLora):
        named = _their_adapters(layout, theirs, model.adapters())
        write_lora(
            output / ADAPTER,
            model.stage.peft,
            named,
            prefix="",
            targets=sorted({name.rpartition(".lora_")[0] for name in named}),
            base="..",
        )
    return f"{len(tensors)} tensors, {size:,} bytes"


def _tensors(
    layout: Layout,
    theirs: Any,  # noqa: ANN401 -- their class
    model: TrainedModel,
) -> Iterator[tuple[str, LazyTensor]]:
    """Yield the published name of each tensor, and the tensor, to be read when it is written.

    Args:
        layout: of the checkpoint.
        theirs: transformers' model, without weights.
        model: ours.
    """
    ours = model.tensors()
    for name, empty in theirs.state_dict().items():
        tensor = ours.get(layout.our_name(name))
        if tensor is None:
            continue  # one of two tied ones: the other is among ours
        rows = len(empty) if empty.ndim else 0
        dtype = model.dtype if tensor.is_floating_point() else tensor.dtype
        read = partial(_with_rows, tensor, rows, dtype)
        yield (
            layout.published_name(name),
            LazyTensor(size=empty.numel() * dtype.itemsize, read=read),
        )


def _with_rows(tensor: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor as it is written: an embedding or an output matrix may have further rows.

    Each is the mean of its own rows. The logit of such a token is the mean of all logits, so it is
    never the most likely one.
    """
    if tensor.ndim and len(tensor) < rows:
        mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
        tensor = torch.cat([tensor, mean.expand(rows - len(tensor), *mean.shape[1:])])
    return tensor.to(dtype)


def _generation_config(model: TrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return greedy decoding that ends where our answers end."""
    stage = model.stage
    prompts = SampleEncoder(model.spec, tokenizer, prompt=stage.prompt, max_tokens=stage.max_tokens)
    pad = tokenizer.pad_token_id
    starts = {"decoder_start_token_id": pad} if model.spec.backbone.seq2seq else {}
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(prompts.stop_ids) or None,
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        **starts,
    )


def _their_adapters(
    layout: Layout,
    theirs: Any,  # noqa: ANN401 -- their class
    adapters: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return adapters under the names that their layers have in transformers' model."""
    layers = {
        layout.our_name(name).removesuffix(".weight"): name.removesuffix(".weight")
        for name in theirs.state_dict()
    }
    named = {}
    for name, tensor in adapters.items():
        layer, marker, rest = name.rpartition(".lora_")
        named[f"{layers[layer]}{marker}{rest}"] = tensor
    return named
