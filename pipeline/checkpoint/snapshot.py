"""A checkpoint's content, copied to the host's memory: all that a step has to wait for.

DeepSpeed hands whatever it wants saved to its checkpoint engine, which is meant to be exchanged.
Ours copies the tensors instead of writing them. DeepSpeed's own writers that work beside training
(`checkpoint.writer`, decoupled) take no copy, so they must end before the next step begins, and
need an asynchronous I/O operator; docs/checkpoints.md says more.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoint.files import APART, WEIGHTS, ZERO, Described, describe
from pipeline.checkpoint.gather import gathered


class _Copier(CheckpointEngine):
    """Takes what DeepSpeed saves, by path; makes no file and no folder."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[Path, Any] = {}

    def create(self, info: object) -> None:
        """Nothing: names are DeepSpeed's business."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: the writer makes folders, beside training."""

    def save(self, state_dict: Any, path: str) -> None:  # noqa: ANN401 -- whatever it may be
        """Copy a state."""
        self.states[Path(path)] = on_host(state_dict)

    def load(self, path: str, map_location: object = None) -> Any:  # noqa: ANN401
        """Never asked for while something is saved."""
        raise RuntimeError(f"{path}: a copier loads nothing")

    def commit(self, info: object) -> bool:
        """Nothing: see `pipeline.checkpoint.async_writer`."""
        return True


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One rank's share of a checkpoint, in the host's memory.

    Args:
        states: what DeepSpeed wants saved, by path.
        tensors: by name of a safetensors file, what it holds; rank 0's.
        finish: writes what DeepSpeed puts beside them, its script for converting them.
    """

    states: Mapping[Path, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]
    finish: Callable[[], None]

    def write(self, partial: Path) -> Described:
        """Write everything below a folder, through to the disk; returns what was written."""
        partial.mkdir(parents=True, exist_ok=True)
        for path, state in self.states.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                torch.save(state, stream)
        for name, tensors in self.tensors.items():
            save_file(dict(tensors), partial / name)
        self.finish()
        written = [*self.states, *(partial / name for name in self.tensors)]
        for path in written:
            _through_to_disk(path)
        return describe(partial, written)


def snapshot(
    engine: deepspeed.DeepSpeedEngine,
    partial: Path,
    *,
    inherited: Collection[str],
    apart: Callable[[str], bool],
) -> Snapshot:
    """Copy what a checkpoint in `partial` is to hold; a collective that touches no disk.

    Args:
        engine: between two steps.
        partial: the folder that will be written to.
        inherited: names of weights that are saved though they may not be trained.
        apart: which weights no other stage has; they get a file of their own.
    """
    copier, own = _Copier(), engine.checkpoint_engine
    script = engine._copy_recovery_script
    engine.checkpoint_engine = copier
    # It would write a file, in the step and on rank 0 alone: an error there would leave the others
    # waiting. The writer calls it.
    engine._copy_recovery_script = lambda folder: None
    try:
        engine.save_checkpoint(
            str(partial), tag=ZERO, save_latest=False, exclude_frozen_parameters=True
        )
    finally:
        engine.checkpoint_engine = own
        del engine._copy_recovery_script  # the method is seen again
    first = dist.get_rank() == 0
    saved = [
        (name, parameter)
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad or name in inherited
    ]
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in gathered(saved):
        if first:
            file = APART if apart(name) else WEIGHTS
            files.setdefault(file, {})[name] = tensor.to("cpu", copy=True).contiguous()
    return Snapshot(
        states=copier.states,
        tensors=files,
        finish=(lambda: script(str(partial))) if first else (lambda: None),
    )


def on_host(value: Any, seen: dict[int, Any] | None = None) -> Any:  # noqa: ANN401
    """Return a deep copy whose tensors are in the host's memory; what is one tensor stays one."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, Tensor):
        copied: Any = value.detach().to("cpu", copy=True)
    elif isinstance(value, dict):
        copied = copy.copy(value)  # an OrderedDict stays one
        copied.update((key, on_host(item, seen)) for key, item in value.items())
    elif type(value) in (list, tuple):
        copied = type(value)(on_host(item, seen) for item in value)
    else:
        copied = copy.deepcopy(value)
    seen[id(value)] = copied
    return copied


def _through_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
