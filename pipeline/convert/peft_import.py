"""Reads a peft folder: low-rank adapters on top of a base, for import.

LLaVA's own LoRA folders hold the projector, too, in `non_lora_trainables.bin`, and a `config.json`
of the whole (haotian-liu/LLaVA, `llava/model/builder.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from etl.cli import UserError
from model.convert.wiring import Wiring
from model.exported import BACKBONE
from model.peft.lora import our_name
from model.spec import Lora
from pipeline.convert.safetensors_store import SafetensorsStore

CONFIG = "adapter_config.json"
OTHER_TRAINED = "non_lora_trainables.bin"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
}
"""Settings of peft whose other values no spec expresses."""


@dataclass(frozen=True, kw_only=True)
class ImportedAdapters:
    """Adapters as ours.

    Args:
        lora: their settings.
        weights: by our names.
    """

    lora: Lora
    weights: Mapping[str, Tensor]


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the configuration of a peft folder.

    Raises:
        UserError: it is damaged, or has a setting that is not supported.
    """
    file = folder / CONFIG
    try:
        settings: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    for name, allowed in _PLAIN.items():
        if settings.get(name, allowed[0]) not in allowed:
            raise UserError(f"{file}: {name} {settings[name]!r}, want {allowed[0]!r}")
    return settings


def base_folder(folder: Path, base: Path | None) -> Path:
    """Return the folder of the base that adapters are for.

    Args:
        folder: of the adapters.
        base: as the user names it; None for the one that the configuration names.

    Raises:
        UserError: there is no such folder.
    """
    named = read_settings(folder).get("base_model_name_or_path")
    found = base if base is not None else Path(str(named))
    if base is None and not found.is_absolute() and (folder / found).is_dir():
        found = folder / found
    if not found.is_dir():
        raise UserError(
            f"{folder / CONFIG}: its base {str(found)!r} is not a folder here; name one with --base"
        )
    return found


def read_adapters(folder: Path, wiring: Wiring) -> ImportedAdapters:
    """Read a peft folder's adapters, under our names.

    Args:
        folder: the peft folder.
        wiring: of the model that they adapt.

    Raises:
        UserError: no such file, or adapters of other parts than the backbone.
    """
    settings = read_settings(folder)
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: has no {_FILES[0]}")
    weights: dict[str, Tensor] = {}
    for name, tensor in SafetensorsStore(file, [file]).items():
        theirs = our_name(name, "")
        layer, marker, rest = theirs.rpartition(".lora_")
        ours = wiring.our_name(f"{layer}.weight").removesuffix(".weight")
        if not ours.startswith(BACKBONE):
            raise UserError(
                f"{file}: {name} adapts {ours}, want layers of the language model alone"
            )
        weights[f"{ours}{marker}{rest}"] = tensor
    layers = {name.rpartition(".lora_")[0].removeprefix(BACKBONE) for name in weights}
    lora = Lora(
        rank=int(settings["r"]),
        alpha=int(settings["lora_alpha"]),
        dropout=float(settings.get("lora_dropout", 0.0)),
        targets=_targets(layers, wiring),
        use_rslora=bool(settings.get("use_rslora", False)),
        use_dora=bool(settings.get("use_dora", False)),
    )
    return ImportedAdapters(lora=lora, weights=weights)


def _targets(layers: set[str], wiring: Wiring) -> tuple[str, ...]:
    """Return the shortest names of the adapted layers that name no others."""
    leaves = {layer.rpartition(".")[2] for layer in layers}
    count = wiring.system.model.backbone.layers
    if len(layers) == count * len(leaves):
        return tuple(sorted(leaves))
    return tuple(sorted(layers))


def without_prefix(name: str) -> str:
    """Return the name that a tensor of `non_lora_trainables.bin` has in the model."""
    name = name.removeprefix("base_model.")
    return name.removeprefix("model.") if name.startswith("model.model.") else name
