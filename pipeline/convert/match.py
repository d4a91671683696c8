"""Which tensor of a checkpoint is which of ours: every one exactly once, or named."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etl.cli import UserError
from model.convert.wiring import Wiring
from pipeline.convert.source import Folder, SourceRecord, SourceTensor
from pipeline.convert.store import Store


def match(store: Store, wiring: Wiring, model: nn.Module) -> tuple[SourceRecord, list[str]]:
    """Find a place for each tensor of a checkpoint, and a tensor for each place.

    Args:
        store: the checkpoint.
        wiring: says what its names are in our terms.
        model: ours, without weights.

    Returns:
        The record, and a line for each tensor that was left out.

    Raises:
        UserError: a tensor that is missing, unexpected or of another shape.
    """
    places = model.state_dict(keep_vars=True)
    owners = _owners(places)
    named = {name: _place(name, store, wiring, places) for name in store}
    given: dict[str, str] = {}
    for name, ours in named.items():
        if ours is not None:
            if ours in given:
                raise UserError(f"{name}: {given[ours]} is the same part of {wiring.system.name}")
            given[ours] = name
    said = []
    for name, ours in named.items():
        if ours is None:
            said.append(f"left out: {name}, which follows from the configuration")
        elif _repeats(ours, owners[ours], given, store):
            said.append(f"left out: {name}, which is {given[owners[ours]]} again")
            named[name] = owners[ours]
    missing = sorted(set(owners.values()) - {ours for ours in named.values() if ours})
    if missing:
        raise UserError(f"{store.place}: holds nothing for {missing[0]} ({len(missing)} missing)")
    tensors = [
        SourceTensor(name=name, dtype=store.entries[name].dtype, ours=ours)
        for name, ours in named.items()
    ]
    folders = [Folder(name=name, prefix=part.prefix) for name, part in wiring.components.items()]
    return SourceRecord(folders=tuple(folders), tensors=tuple(tensors)), said


def _owners(places: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each name the first of those that name the same tensor, tied ones among them."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in places.items()}


def _place(name: str, store: Store, wiring: Wiring, places: Mapping[str, Tensor]) -> str | None:
    """Return our name of a tensor, or None for one that we compute ourselves."""
    if wiring.is_derived(name):
        return None
    ours = wiring.our_name(name)
    if ours not in places:
        raise UserError(
            f"{store.place}: {name} is unexpected, {wiring.system.name} has no such part"
        )
    shape, want = store.entries[name].shape, tuple(places[ours].shape)
    if shape != want:
        raise UserError(f"{store.place}: {name} is {shape}, its configuration wants {want}")
    return ours


def _repeats(ours: str, owner: str, given: Mapping[str, str], store: Store) -> bool:
    """Whether a tensor is tied to another one that the checkpoint holds, too, and equal to it."""
    if ours == owner or owner not in given:
        return False
    return torch.equal(store[given[ours]], store[given[owner]])
