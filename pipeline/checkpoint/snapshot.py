"""A snapshot of a checkpoint's content in host memory: all that a training step has to wait for.

DeepSpeed passes whatever it saves to its checkpoint engine, which is replaceable. Ours copies the
tensors instead of writing them. DeepSpeed's own asynchronous writers (`checkpoint.writer`,
decoupled) make no copy, so they must finish before the next step begins, and they need an
asynchronous I/O operator; see docs/checkpoints.md.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.compat.bitsandbytes import is_quantized
from model.weights import names_in, without_adapter
from pipeline.checkpoint.files import OBJECTIVE_WEIGHTS, WEIGHTS, ZERO, Checksums, checksums
from pipeline.checkpoint.gather import gather_parameters
from pipeline.compat.deepspeed import recovery_script_deferred


class _Copier(CheckpointEngine):
    """Copies what DeepSpeed saves, by path; creates no file and no folder."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[Path, Any] = {}

    def create(self, info: object) -> None:
        """Do nothing; DeepSpeed's engines may log the checkpoint's name here."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing; the background writer creates folders."""

    def save(self, state_dict: Any, path: str) -> None:  # noqa: ANN401 -- any picklable
        """Copy a state to host memory."""
        self.states[Path(path)] = on_host(state_dict)

    def load(self, path: str, map_location: object = None) -> Any:  # noqa: ANN401
        """Raise RuntimeError: DeepSpeed loads nothing while it saves."""
        raise RuntimeError(f"{path}: this checkpoint engine cannot load")

    def commit(self, info: object) -> bool:
        """Do nothing; see `pipeline.checkpoint.async_writer`."""
        return True


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One rank's part of a checkpoint, in host memory.

    Args:
        states: DeepSpeed's states, by path.
        tensors: the content of each safetensors file, by file name; empty except on rank 0.
        finish: writes the conversion script that DeepSpeed adds to a checkpoint.
    """

    states: Mapping[Path, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]
    finish: Callable[[], None]

    def write(self, partial: Path) -> Checksums:
        """Write and fsync everything in a folder; return the checksums of the files."""
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
            _fsync(path)
        return checksums(partial, written)


def snapshot(
    engine: deepspeed.DeepSpeedEngine,
    partial: Path,
    *,
    inherited: Path | None,
    objective_only: Callable[[str], bool],
) -> Snapshot:
    """Copy the content of a checkpoint; a collective that does not touch the disk.

    Args:
        engine: between two steps.
        partial: the folder that the checkpoint will be written to.
        inherited: a file with weights to save even where they are frozen; those that are quantized
            now (QLoRA) are saved as they are in it.
        objective_only: whether only this stage's losses need a weight; such weights get a file of
            their own.
    """
    copier, own = _Copier(), engine.checkpoint_engine
    engine.checkpoint_engine = copier
    try:
        with recovery_script_deferred(engine) as script:  # to the background writer
            engine.save_checkpoint(
                str(partial), tag=ZERO, save_latest=False, exclude_frozen_parameters=True
            )
    finally:
        engine.checkpoint_engine = own
    writes = dist.get_rank() == 0
    names = frozenset(names_in(inherited)) if inherited is not None else frozenset()
    saved = [
        (name, parameter)
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad or name in names or without_adapter(name) in names
    ]
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in gather_parameters([one for one in saved if not is_quantized(one[1])]):
        if writes:
            file = OBJECTIVE_WEIGHTS if objective_only(name) else WEIGHTS
            files.setdefault(file, {})[name] = tensor.to("cpu", copy=True).contiguous()
    quantized = [name for name, parameter in saved if is_quantized(parameter)]
    if quantized and writes:
        assert inherited is not None  # they are frozen
        with safe_open(inherited, framework="pt") as file:
            for name in quantized:
                own = name if name in names else without_adapter(name)
                files.setdefault(WEIGHTS, {})[own] = file.get_tensor(own)
    return Snapshot(
        states=copier.states,
        tensors=files,
        finish=(lambda: script(str(partial))) if writes else (lambda: None),
    )


def on_host(value: Any, seen: dict[int, Any] | None = None) -> Any:  # noqa: ANN401
    """Return a deep copy whose tensors are in host memory; shared tensors stay shared."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, Tensor):
        copied: Any = value.detach().to("cpu", copy=True)
    elif isinstance(value, dict):
        copied = copy.copy(value)  # an OrderedDict stays an OrderedDict
        copied.update((key, on_host(item, seen)) for key, item in value.items())
    elif type(value) in (list, tuple):
        copied = type(value)(on_host(item, seen) for item in value)
    else:
        copied = copy.deepcopy(value)
    seen[id(value)] = copied
    return copied


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
