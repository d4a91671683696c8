"""Reshard a ZeRO checkpoint to another number of ranks while loading it.

ZeRO concatenates the trained parameters in flat tensors and partitions them: stages 1 and 2 divide
the flat tensor of a whole group among the ranks, stage 3 divides every parameter. The offsets of a
parameter follow from the shapes in order and the number of ranks alone, for the saved partitioning
as for the current one. So a rank copies its own elements from the saved ranks' files into a state
of the current layout, and DeepSpeed loads that like any other: groups keep their own options, every
state has its own `step`, nothing is written, and no conversion can be killed half-way.
docs/checkpoints.md says why DeepSpeed's universal checkpoint is not used for this.

Layouts: as DeepSpeed's `zero_to_fp32.py`, which it adds to every checkpoint, reads them.
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
from pipeline.compat.deepspeed import trained_shapes

Shapes = Sequence[Mapping[str, Sequence[int]]]
"""Per flat tensor (a group; under stage 3 a sub-group): names and shapes in order."""

_WEIGHTS = "fp32"
"""Key of the full-precision weights, besides the keys of the optimizer's own states."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A contiguous range of a parameter's elements that one rank holds.

    Args:
        name: of the parameter.
        start: index of the first element in the flattened parameter.
        offset: index of that element in the rank's flat tensor.
        size: number of elements.
    """

    name: str
    start: int
    offset: int
    size: int


def partition_group(
    shapes: Mapping[str, Sequence[int]], partition: int, rank: int
) -> Iterator[Span]:
    """Yield a rank's spans of a flat tensor that stages 1 and 2 divide into equal partitions.

    Args:
        shapes: of the parameters in the flat tensor.
        partition: elements of a rank.
        rank: which.
    """
    low, high, begin = rank * partition, (rank + 1) * partition, 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape)
        first, last = max(begin, low), min(end, high)
        if first < last:
            yield Span(name=name, start=first - begin, offset=first - low, size=last - first)
        begin = end


def partition_parameters(
    shapes: Mapping[str, Sequence[int]], ranks: int, rank: int
) -> Iterator[Span]:
    """Yield a rank's spans of a flat tensor whose parameters stage 3 divides one by one."""
    offset = 0
    for name, shape in shapes.items():
        total = math.prod(shape)
        partition = -(-total // ranks)
        size = min(partition, total - rank * partition)
        if size > 0:
            yield Span(name=name, start=rank * partition, offset=offset, size=size)
        offset += partition


class SavedRanks:
    """The files of the ranks that wrote a checkpoint, memory-mapped on first use.

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
        """Return the scalars (`step`) in a flat tensor's optimizer state."""
        state = _base(self._state(0))["state"][flat]
        return {name: value for name, value in state.items() if not _is_flat(value)}

    def keys(self) -> list[str]:
        """Return the keys of the tensors to reshard: the weights and the optimizer's moments."""
        return [_WEIGHTS, *(k for k, v in _base(self._state(0))["state"][0].items() if _is_flat(v))]

    def spans(self, rank: int) -> Iterator[tuple[int, Span]]:
        """Yield the spans of a saved rank, each with the index of its flat tensor."""
        for flat, shapes in enumerate(self.shapes):
            if self.stage == 3:
                spans = partition_parameters(shapes, self.ranks, rank)
            else:
                moment = self.keys()[1]
                partition = _base(self._state(0))["state"][flat][moment].numel()
                spans = partition_group(shapes, partition, rank)
            yield from ((flat, span) for span in spans)

    def tensor(self, rank: int, flat: int, key: str) -> Tensor:
        """Return a flat tensor of a saved rank; only the elements that are used are read."""
        state = self._state(rank)
        if key != _WEIGHTS:
            tensor: Tensor = _base(state)["state"][flat][key]
        else:
            tensor = state[_weights_key(self.stage)][flat]
        return tensor.detach()

    def _read_state(self, rank: int) -> dict[str, Any]:
        state: dict[str, Any] = _read(self._optimizers[rank])["optimizer_state_dict"]
        if any(map(any, state.get("param_alignment_paddings", ()))):
            raise UserError(
                f"{self._optimizers[rank]}: written with zero_optimization.parameter_alignment; "
                f"resume with {self.ranks} ranks"
            )
        return state


class SavedParameters:
    """Reads any span of any parameter, whichever of the saved ranks hold it."""

    def __init__(self, saved: SavedRanks) -> None:
        self._saved = saved
        self._spans: dict[str, list[tuple[int, int, Span]]] = {}
        for rank in range(saved.ranks):
            for flat, span in saved.spans(rank):
                self._spans.setdefault(span.name, []).append((rank, flat, span))

    def flat_of(self, name: str) -> int:
        """Return the index of the saved flat tensor that holds a parameter."""
        return self._spans[name][0][1]

    def copy(self, target: Tensor, span: Span, key: str) -> None:
        """Copy a span to its offset in a flat tensor of the current layout."""
        copied = 0
        for rank, flat, saved in self._spans[span.name]:
            start = max(saved.start, span.start)
            size = min(saved.start + saved.size, span.start + span.size) - start
            if size > 0:
                tensor = self._saved.tensor(rank, flat, key)
                elements = tensor.narrow(0, saved.offset + start - saved.start, size)
                target.narrow(0, span.offset + start - span.start, size).copy_(elements)
                copied += size
        if copied != span.size:
            raise RuntimeError(f"{span.name}: {copied} of {span.size} elements in the files")


def load_resharded(engine: deepspeed.DeepSpeedEngine, folder: Path) -> None:
    """Load a checkpoint that another number of ranks wrote; a collective.

    Args:
        engine: after `deepspeed.initialize`, with the frozen weights loaded.
        folder: DeepSpeed's own, `step-…/zero`.
    """
    saved = SavedRanks(folder)
    optimizer, common = engine.optimizer, saved.common
    partitioned = engine.zero_optimization_partition_weights()
    if partitioned:
        optimizer.checkpoint_event_prologue()
    engine.load_module_state_dict(checkpoint=common, strict=False)
    engine.lr_scheduler.load_state_dict(common["lr_scheduler"])
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, common[name])
    state = resharded_state(engine, saved)
    optimizer.load_state_dict([state] * dist.get_world_size(), load_from_fp32_weights=True)
    if partitioned:
        optimizer.checkpoint_event_epilogue()


def resharded_state(engine: deepspeed.DeepSpeedEngine, saved: SavedRanks) -> dict[str, Any]:
    """Return this rank's optimizer state in the layout of the current number of ranks."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    state: dict[str, Any] = dict(engine.optimizer.state_dict())
    shapes: Shapes = trained_shapes(engine)
    stage = int(state["zero_stage"])
    if (stage == 3) != (saved.stage == 3):
        raise UserError(f"a checkpoint of ZeRO-{saved.stage} cannot be resharded to ZeRO-{stage}")
    if stage == 3:
        templates = state["fp32_flat_groups"]
    else:
        # Those in the state dict have no padding; the optimizer's moments do.
        templates = engine.optimizer.single_partition_of_fp32_groups
    parameters, keys = SavedParameters(saved), saved.keys()
    flats: list[Tensor] = []
    moments: dict[int, dict[str, Any]] = {}
    for number, (names, template) in enumerate(zip(shapes, templates, strict=True)):
        if stage == 3:
            spans = list(partition_parameters(names, ranks, rank))
        else:
            spans = list(partition_group(names, template.numel(), rank))
        tensors = {key: torch.zeros(template.numel(), dtype=torch.float32) for key in keys}
        for key, target in tensors.items():
            for span in spans:
                parameters.copy(target, span, key)
        flats.append(tensors.pop(_WEIGHTS))
        scalars = saved.scalars(parameters.flat_of(next(iter(names))))
        own = {k: v.clone() if isinstance(v, Tensor) else v for k, v in scalars.items()}
        moments[number] = {**own, **tensors}
    state[_weights_key(stage)] = flats
    groups = _base(state)["param_groups"]
    options = [
        {**group_options, "params": group["params"]}
        for group_options, group in zip(saved.options, groups, strict=True)
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
