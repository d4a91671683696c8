"""Complete a part of which a file or `--set` says only its kind and its weights.

    "backbone": {"kind": "hf_causal", "weights": "Qwen/Qwen3-0.6B"}

All else is read from the folder or the hub, as `compose` does; fields that are given stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

_KINDS = ("hf_causal", "hf_seq2seq", "hf_vision", "hf_audio")
"""Kinds of parts that are described by the `config` of a checkpoint."""


def complete_parts(system: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a system in which every part of transformers has its `config`.

    Raises:
        SpecError: there is no such checkpoint, or it cannot serve.
    """
    model = system.get("model")
    if not isinstance(model, Mapping):
        return dict(system)
    completed = dict(model)
    if _lacks_config(model.get("backbone")):
        completed["backbone"] = _backbone(model["backbone"])
    if isinstance(model.get("inputs"), list | tuple):
        completed["inputs"] = [_branch(branch) for branch in model["inputs"]]
    return {**system, "model": completed}


def _lacks_config(part: object) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("kind") in _KINDS
        and isinstance(part.get("weights"), str)
        and "config" not in part
    )


def _backbone(part: Mapping[str, Any]) -> dict[str, Any]:
    # Imported here since it imports torch, which takes a second.
    from model.compose.backbones import backbone_from  # noqa: PLC0415

    return asdict(backbone_from(part["weights"])) | dict(part)


def _branch(branch: object) -> object:
    if not isinstance(branch, Mapping) or not _lacks_config(branch.get("encoder")):
        return branch
    from model.compose.hf_encoders import audio_from, vision_from  # noqa: PLC0415

    given = branch["encoder"]
    read = audio_from if given["kind"] == "hf_audio" else vision_from
    return {**branch, "encoder": asdict(read(given["weights"])) | dict(given)}
