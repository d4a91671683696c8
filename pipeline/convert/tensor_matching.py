"""Matches the tensors of a checkpoint with those of our model: each exactly once, or reported."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etl.cli import UserError
from model.convert.wiring import Wiring
from pipeline.convert.safetensors_store import SafetensorsStore
from pipeline.convert.source_record import Folder, SourceRecord, SourceTensor


def match_tensors(
    store: SafetensorsStore, wiring: Wiring, model: nn.Module
) -> tuple[SourceRecord, list[str]]:
    """Find our name for each tensor of a checkpoint, and a tensor for each parameter and buffer.

    Args:
        store: the checkpoint.
        wiring: translates its names to ours.
        model: ours, without weights.

    Returns:
        The record, and a line for each tensor that is left out.

    Raises:
        UserError: a tensor that is missing, unexpected or of another shape.
    """
    state = model.state_dict(keep_vars=True)
    first_names = _first_names(state)
    matched = {name: _our_name(name, store, wiring, state) for name in store}
    sources: dict[str, str] = {}
    for name, ours in matched.items():
        if ours is not None:
            if ours in sources:
                raise UserError(
                    f"{name}: is the same tensor of {wiring.system.name} as {sources[ours]}"
                )
            sources[ours] = name
    messages = []
    for name, ours in matched.items():
        if ours is None:
            messages.append(f"left out: {name}, which is computed from the configuration")
        elif _is_copy(ours, first_names[ours], sources, store):
            messages.append(f"left out: {name}, a copy of {sources[first_names[ours]]}")
            matched[name] = first_names[ours]
    needed = {ours for ours in first_names.values() if not ours.startswith(wiring.elsewhere)}
    missing = sorted(needed - {ours for ours in matched.values() if ours})
    if missing:
        raise UserError(f"{store.path}: has no tensor for {missing[0]} ({len(missing)} missing)")
    tensors = [
        SourceTensor(name=name, dtype=store.entries[name].dtype, ours=ours)
        for name, ours in matched.items()
    ]
    folders = [Folder(name=name, prefix=part.prefix) for name, part in wiring.components.items()]
    return SourceRecord(folders=tuple(folders), tensors=tuple(tensors)), messages


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each name the first name of the same tensor: tied weights have several."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}


def _our_name(
    name: str, store: SafetensorsStore, wiring: Wiring, state: Mapping[str, Tensor]
) -> str | None:
    """Return our name of a tensor, or None for one that is computed from the configuration."""
    if wiring.is_derived(name):
        return None
    ours = wiring.our_name(name)
    if ours not in state:
        raise UserError(
            f"{store.path}: {name} is unexpected, {wiring.system.name} has no such tensor"
        )
    shape, want = store.entries[name].shape, tuple(state[ours].shape)
    if shape != want:
        raise UserError(f"{store.path}: {name} is {shape}, want {want} as in its configuration")
    return ours


def _is_copy(ours: str, first: str, sources: Mapping[str, str], store: SafetensorsStore) -> bool:
    """Whether a tensor is tied to another one of the checkpoint and equal to it."""
    if ours == first or first not in sources:
        return False
    return torch.equal(store[sources[ours]], store[sources[first]])
