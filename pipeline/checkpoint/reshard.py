"""A ZeRO checkpoint of another number of ranks, dealt out anew to the ranks there are now.

ZeRO lays the trained parameters one after the other in flat tensors and gives each rank a part:
stages 1 and 2 cut the whole flat tensor of a group, stage 3 cuts every parameter. Where a
parameter lies follows from the shapes in order and the number of ranks alone, for the old ranks as
for the new. So a rank copies what is its own from the old ranks' files into a state of the new
layout, and DeepSpeed loads that as it loads any other: groups keep their own options, every state
has its own `step`, nothing is written and no conversion can be killed half-way.
docs/checkpoints.md says why this is not done by DeepSpeed's universal checkpoint.

Layouts: DeepSpeed's `zero_to_fp32.py`, which is beside every checkpoint, reads the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from etl.cli import UserError

Shapes = Sequence[Mapping[str, Sequence[int]]]
"""Per flat tensor (a group; under stage 3 a part of one): names and shapes in order."""

_WEIGHTS = "fp32"
"""Beside the optimizer's own states: the weights in full precision."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of a parameter that one rank holds.

    Args:
        name: the parameter's.
        first: where the stretch begins in the flattened parameter.
        place: where it lies in the rank's flat tensor.
        size: number of elements.
    """

    name: str
    first: int
    place: int
    size: int


def cut_groups(shapes: Mapping[str, Sequence[int]], part: int, rank: int) -> Iterator[Span]:
    """Yield what a rank holds of a flat tensor that stages 1 and 2 cut into parts of `part`."""
    low, high, offset = rank * part, (rank + 1) * part, 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape)
        first, last = max(offset, low), min(end, high)
        if first < last:
            yield Span(name=name, first=first - offset, place=first - low, size=last - first)
        offset = end


def cut_parameters(shapes: Mapping[str, Sequence[int]], ranks: int, rank: int) -> Iterator[Span]:
    """Yield what a rank holds of a flat tensor whose parameters stage 3 cuts one by one."""
    offset = 0
    for name, shape in shapes.items():
        total = math.prod(shape)
        part = -(-total // ranks)
        size = min(part, total - rank * part)
        if size > 0:
            yield Span(name=name, first=rank * part, place=offset, size=size)
        offset += part


class OldRanks:
    """The files of the ranks that wrote a checkpoint; opened when asked for, read where needed.

    Args:
        folder: DeepSpeed's own, `step-…/zero`.
    """

    def __init__(self, folder: Path) -> None:
        self._optimizers = sorted(folder.glob("*_optim_states.pt"), key=_rank_of)
        self.ranks = len(self._optimizers)
        self.common: dict[str, Any] = _read(next(iter(sorted(folder.glob("*_model_states.pt")))))
        self.shapes: Shapes = self.common["param_shapes"]
        self._state = functools.lru_cache(maxsize=None)(self._read_state)

    @property
    def stage(self) -> int:
        """ZeRO's stage: 1, 2 or 3."""
        return int(self._state(0)["zero_stage"])

    @property
    def options(self) -> list[dict[str, Any]]:
        """The options of each parameter group: learning rate, weight decay and so on."""
        return [dict(group) for group in _base(self._state(0))["param_groups"]]

    def scalars(self, flat: int) -> dict[str, Any]:
        """Return what a flat tensor's state has beside tensors of its own length (`step`)."""
        state = _base(self._state(0))["state"][flat]
        return {name: value for name, value in state.items() if not _is_flat(value)}

    def keys(self) -> list[str]:
        """Return the names of what is dealt out: the weights and the optimizer's moments."""
        return [_WEIGHTS, *(k for k, v in _base(self._state(0))["state"][0].items() if _is_flat(v))]

    def pieces(self, rank: int) -> Iterator[tuple[int, Span]]:
        """Yield what an old rank holds, with the number of the flat tensor that it lies in."""
        for flat, shapes in enumerate(self.shapes):
            if self.stage == 3:
                spans = cut_parameters(shapes, self.ranks, rank)
            else:
                moment = self.keys()[1]
                part = _base(self._state(0))["state"][flat][moment].numel()
                spans = cut_groups(shapes, part, rank)
            yield from ((flat, span) for span in spans)

    def tensor(self, rank: int, flat: int, key: str) -> Tensor:
        """Return one of an old rank's flat tensors; only what is looked at is read from disk."""
        state = self._state(rank)
        if key != _WEIGHTS:
            found: Tensor = _base(state)["state"][flat][key]
        else:
            found = state[_weights_key(self.stage)][flat]
        return found.detach()

    def _read_state(self, rank: int) -> dict[str, Any]:
        state: dict[str, Any] = _read(self._optimizers[rank])["optimizer_state_dict"]
        if any(map(any, state.get("param_alignment_paddings", ()))):
            raise UserError(
                f"{self._optimizers[rank]}: written with zero_optimization.parameter_alignment; "
                f"go on with {self.ranks} ranks"
            )
        return state


class Source:
    """Any stretch of any parameter, whichever of the old ranks hold it."""

    def __init__(self, old: OldRanks) -> None:
        self._old = old
        self._held: dict[str, list[tuple[int, int, Span]]] = {}
        for rank in range(old.ranks):
            for flat, span in old.pieces(rank):
                self._held.setdefault(span.name, []).append((rank, flat, span))

    def flat_of(self, name: str) -> int:
        """Return the number of the old flat tensor that holds a parameter."""
        return self._held[name][0][1]

    def fill(self, target: Tensor, wanted: Span, key: str) -> None:
        """Copy a stretch to its place in a new flat tensor."""
        filled = 0
        for rank, flat, span in self._held[wanted.name]:
            first = max(span.first, wanted.first)
            size = min(span.first + span.size, wanted.first + wanted.size) - first
            if size > 0:
                tensor = self._old.tensor(rank, flat, key)
                piece = tensor.narrow(0, span.place + first - span.first, size)
                target.narrow(0, wanted.place + first - wanted.first, size).copy_(piece)
                filled += size
        if filled != wanted.size:
            raise RuntimeError(f"{wanted.name}: {filled} of {wanted.size} elements in the files")


def load_resharded(engine: deepspeed.DeepSpeedEngine, folder: Path) -> None:
    """Load a checkpoint that another number of ranks has written; a collective.

    Args:
        engine: as it is after `deepspeed.initialize`, the frozen weights in place.
        folder: DeepSpeed's own, `step-…/zero`.
    """
    old = OldRanks(folder)
    optimizer, common = engine.optimizer, old.common
    partitioned = engine.zero_optimization_partition_weights()
    if partitioned:
        optimizer.checkpoint_event_prologue()
    engine.load_module_state_dict(checkpoint=common, strict=False)
    engine.lr_scheduler.load_state_dict(common["lr_scheduler"])
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, common[name])
    state = resharded_state(engine, old)
    optimizer.load_state_dict([state] * dist.get_world_size(), load_from_fp32_weights=True)
    if partitioned:
        optimizer.checkpoint_event_epilogue()


def resharded_state(engine: deepspeed.DeepSpeedEngine, old: OldRanks) -> dict[str, Any]:
    """Return this rank's optimizer state in the layout of the ranks there are now."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    state: dict[str, Any] = dict(engine.optimizer.state_dict())
    shapes: Shapes = engine._get_zero_param_shapes()  # what it saves as param_shapes
    stage = int(state["zero_stage"])
    if (stage == 3) != (old.stage == 3):
        raise UserError(f"a checkpoint of ZeRO-{old.stage} cannot be dealt out under ZeRO-{stage}")
    if stage == 3:
        templates = state["fp32_flat_groups"]
    else:
        # The saved ones have no padding; the optimizer's moments have.
        templates = engine.optimizer.single_partition_of_fp32_groups
    source, dealt_out = Source(old), old.keys()
    flats: list[Tensor] = []
    moments: dict[int, dict[str, Any]] = {}
    for number, (names, template) in enumerate(zip(shapes, templates, strict=True)):
        if stage == 3:
            spans = list(cut_parameters(names, ranks, rank))
        else:
            spans = list(cut_groups(names, template.numel(), rank))
        dealt = {key: torch.zeros(template.numel(), dtype=torch.float32) for key in dealt_out}
        for key, target in dealt.items():
            for span in spans:
                source.fill(target, span, key)
        flats.append(dealt.pop(_WEIGHTS))
        scalars = old.scalars(source.flat_of(next(iter(names))))
        own = {k: v.clone() if isinstance(v, Tensor) else v for k, v in scalars.items()}
        moments[number] = {**own, **dealt}
    state[_weights_key(stage)] = flats
    groups = _base(state)["param_groups"]
    options = [
        {**saved, "params": group["params"]}
        for saved, group in zip(old.options, groups, strict=True)
    ]
    state[_base_key(stage)] = {"state": moments, "param_groups": options}
    return state


def _base(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of the optimizer that DeepSpeed wraps."""
    base: dict[str, Any] = state[_base_key(int(state["zero_stage"]))]
    return base


def _base_key(stage: int) -> str:
    return "optimizer_state_dict" if stage == 3 else "base_optimizer_state"


def _weights_key(stage: int) -> str:
    return "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"


def _is_flat(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _rank_of(path: Path) -> int:
    """Return the rank in `…zero_pp_rank_3_mp_rank_00_optim_states.pt`."""
    return int(path.name.partition("pp_rank_")[2].partition("_")[0])


def _read(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return read
