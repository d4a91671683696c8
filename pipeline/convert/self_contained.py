"""A run as one self-contained folder, which `from model import load` opens."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from etl.storage.atomic import write_json
from model.build import build_text_tokenizer, published_tokenizer, save_generators
from model.exported import (
    ADAPTER,
    GENERATORS,
    SPEC_FILE,
    TEXT_TOKENIZER,
    ExportedSpec,
    with_folders,
)
from model.weights import Weights
from pipeline.convert.peft_folder import write_adapter_folder
from pipeline.convert.safetensors_store import write_tensors
from pipeline.convert.trained_model import TrainedModel


def write_self_contained(model: TrainedModel, output: Path, *, weights: Weights, seed: int) -> str:
    """Write all of a model: what it is, its weights, its tokenizers, and its frozen generators.

    Args:
        model: the trained one.
        output: an existing folder.
        weights: where its tokenizers and generators come from, as of the run.
        seed: of the run, for random weights.

    Returns:
        A line with the number and size of the tensors.
    """
    tensors = model.lazy(model.tensors())
    size = write_tensors(output, tensors)
    if model.separate:
        write_adapter_folder(output / ADAPTER, model)
    spec = ExportedSpec(name=model.name, model=with_folders(model.spec, None), stage=model.stage)
    write_json(output / SPEC_FILE, asdict(spec))
    published_tokenizer(model.spec, weights=weights).save_pretrained(output)
    text_tokenizer = build_text_tokenizer(model.spec, weights=weights)
    if text_tokenizer is not None:
        text_tokenizer.save_pretrained(output / TEXT_TOKENIZER)
    save_generators(model.spec, model.stage, output / GENERATORS, weights=weights, seed=seed)
    return f"{len(tensors)} tensors, {size:,} bytes"
