"""A folder with a whole model, as `python -m pipeline export` writes it, and what reads it.

OUT/mmloom.json                what the model is: `ExportedSpec`
OUT/model.safetensors          all its weights, in shards with an index if they are large
OUT/tokenizer.json …           the backbone's tokenizer, as `save_pretrained` writes it
OUT/text_tokenizer/            of projectors that read the instruction, if there are any
OUT/adapter/                   adapters that are apart from the weights; `model.peft` says how
OUT/generators/KIND/           the frozen generator of an output branch, as a diffusers checkpoint:
                               autoencoder, UNet, scheduler, text encoders and their tokenizers
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from model.build import add_peft, build_backbone, build_inputs, build_outputs, build_tokenizer
from model.multimodal_lm import MultimodalLM
from model.peft.lora import our_name
from model.peft.prefix import load_peft_embeddings
from model.spec import InputBranchSpec, Lora, ModelSpec, SpecError, Stage
from model.spec.decode import decode
from model.spec.peft import Peft, Prefix, QLora
from model.spec.qformer import QFormer
from model.weights import assign

SPEC_FILE = "mmloom.json"
TEXT_TOKENIZER = "text_tokenizer"
GENERATORS = "generators"
ADAPTER = "adapter"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FORMAT_VERSION = 1
BACKBONE = "backbone."


@dataclass(frozen=True, kw_only=True)
class ExportedSpec:
    """What an exported model is.

    Args:
        name: of the system.
        model: its spec. The `weights` of backbone and generators and a Q-Former's `tokenizer` are
            folders relative to the exported one; other `weights` only say where parts came from.
        stage: the settings of the stage that trained it: its prompt, its precision, and adapters
            that are not merged.
        format_version: of the folder.
    """

    name: str
    model: ModelSpec
    stage: Stage
    format_version: int = FORMAT_VERSION


class Loaded(NamedTuple):
    """An exported model: what it is, its module in evaluation mode, and its tokenizer."""

    spec: ExportedSpec
    module: MultimodalLM
    tokenizer: PreTrainedTokenizerBase


def load_exported(folder: Path | str, *, decoding: bool = False) -> Loaded:
    """Open an exported folder; needs no other file, no hub and no network.

    Args:
        folder: that `export` wrote.
        decoding: whether its generators, if it has any, can `sample`.

    Raises:
        SpecError: no such folder, one of another version, or one whose files do not fit each other.
    """
    folder = Path(folder).absolute()
    spec = read_spec(folder)
    peft = spec.stage.peft
    apart = peft is not None and (folder / ADAPTER).is_dir()
    built = peft
    if apart and isinstance(peft, Lora | QLora):
        built = None  # until the plain weights are loaded, which QLoRA then quantizes
    elif apart and isinstance(peft, Prefix):
        built = replace(peft, hidden=None)
    stage = replace(spec.stage, peft=built)
    module = MultimodalLM(
        spec.model,
        build_inputs(spec.model, stage, weights="random"),
        build_backbone(spec.model, stage, weights="random"),
        build_outputs(spec.model, stage, weights="pretrained", decoding=decoding),
    )
    _load_weights(module, folder, without=built.parameter_marker if apart and built else None)
    if peft is not None and apart:
        _load_adapters(module, peft, folder / ADAPTER / ADAPTER_WEIGHTS)
    return Loaded(spec, module.eval(), build_tokenizer(spec.model, weights="pretrained"))


def _load_adapters(module: MultimodalLM, peft: Peft, file: Path) -> None:
    """Load the adapters of a folder into a module whose own weights are loaded."""
    weights = _read(file)
    if isinstance(peft, Prefix):
        load_peft_embeddings(module.backbone, weights["prompt_embeddings"])
        return
    low_rank = isinstance(peft, Lora | QLora)
    if low_rank:
        add_peft(module.backbone, peft)
    names = {name: our_name(name, BACKBONE) if low_rank else BACKBONE + name for name in weights}
    assign(module, {names[name]: each for name, each in weights.items()}, str(file))


def _load_weights(module: MultimodalLM, folder: Path, without: str | None) -> None:
    """Load every tensor of a module from the files of a folder.

    Not those of generators, nor of the backbone's whose names have `without` in them.
    """
    own = module.state_dict()
    missing = {
        name
        for name in distinct_names(module)
        if not of_generator(name)
        and not (without is not None and name.startswith(BACKBONE) and without in name)
    }
    for file in _weight_files(folder):
        found = _read(file)
        for name, tensor in found.items():
            if name not in missing:
                raise SpecError(f"{file}: {name} is not a tensor of the model, or occurs twice")
            if tensor.shape != own[name].shape:
                shapes = f"{tuple(tensor.shape)}, want {tuple(own[name].shape)}"
                raise SpecError(f"{file}: {name} is {shapes}")
            missing.remove(name)
        module.load_state_dict(found, strict=False)
    if missing:
        raise SpecError(f"{folder}: has no tensor for {min(missing)} ({len(missing)} missing)")


def distinct_names(module: nn.Module) -> list[str]:
    """Return the names of a module's saved tensors; of tied ones the first name alone."""
    names: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)
    return list(names.values())


def of_generator(name: str) -> bool:
    """Return whether a tensor is of a frozen generator."""
    return fnmatch(name, "outputs.*.generator.*")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / SAFETENSORS_INDEX_FILE
    if not index.is_file():
        return [folder / SAFETENSORS_SINGLE_FILE]
    try:
        return [
            folder / name
            for name in sorted({*json.loads(index.read_bytes())["weight_map"].values()})
        ]
    except (ValueError, KeyError) as error:
        raise SpecError(f"{index}: not an index of shards ({error})") from None


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise SpecError(f"{file}: not a valid safetensors file ({error})") from None


def read_spec(folder: Path) -> ExportedSpec:
    """Read what an exported model is; its folders are resolved.

    Raises:
        SpecError: no such folder, or not one that `export` wrote in this version.
    """
    file = folder / SPEC_FILE
    if not file.is_file():
        raise SpecError(
            f"{file}: no such file; want a folder written by `python -m pipeline export`"
        )
    try:
        value: Mapping[str, object] = json.loads(file.read_bytes())
    except ValueError as error:
        raise SpecError(f"{file}: {error}") from None
    version = value.get("format_version") if isinstance(value, Mapping) else None
    if version != FORMAT_VERSION:
        raise SpecError(f"{file}: format_version {version}, want {FORMAT_VERSION}")
    spec = decode(ExportedSpec, value, SPEC_FILE)
    return replace(spec, model=with_folders(spec.model, folder))


def with_folders(model: ModelSpec, folder: Path | None) -> ModelSpec:
    """Return a spec whose tokenizers and generators are in an exported folder.

    Args:
        model: the spec.
        folder: the exported one; None for relative names.
    """
    base = Path() if folder is None else folder
    inputs = tuple(_with_text_tokenizer(branch, base / TEXT_TOKENIZER) for branch in model.inputs)
    outputs = tuple(
        replace(
            each, generator=replace(each.generator, weights=str(base / GENERATORS / each.modality))
        )
        for each in model.outputs
    )
    backbone = replace(model.backbone, weights=str(base))
    return replace(model, inputs=inputs, backbone=backbone, outputs=outputs)


def _with_text_tokenizer(branch: InputBranchSpec, folder: Path) -> InputBranchSpec:
    projector = branch.projector
    if not isinstance(projector, QFormer) or not projector.reads_text:
        return branch
    return replace(branch, projector=replace(projector, tokenizer=str(folder)))
