"""`python -m pipeline export`: a trained run as a transformers checkpoint of the whole system."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from etl.cli import UserError, parse
from model.spec.peft import Lora, Peft, QLora
from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.config.run_config import read_config
from pipeline.convert.source import (
    LEFT_OUT,
    SOURCE,
    SourceRecord,
    SourceTensor,
    components_of,
    is_text,
    read_record,
)
from pipeline.convert.store import DTYPES, Later, Store, write_store

_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"
_BASE = ".base_layer."


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a run as the transformers checkpoint that it was imported from, newly trained.

    Low-rank adapters are added to the weights that they adapt.
    """

    run: Path
    """A run folder made by import, or trained from one."""
    output: Path
    """The checkpoint's folder; must not be there yet."""


def export(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ExportOptions, prog="python -m pipeline export", args=args)
    sys.stdout.write(export_run(options.run, options.output) + "\n")
    return 0


def export_run(run: Path, output: Path) -> str:
    """Write a transformers checkpoint with the names, types and files of the imported one.

    Returns:
        A line that says how much it is.

    Raises:
        UserError: a run that no import stands behind, or trained weights that it has no place for.
    """
    if output.exists():
        raise UserError(f"{output}: is there already; name another --output, or remove it")
    config = read_config(run / "config.json")
    components = components_of(config)
    record = read_record(components)
    file = newest_weights(run)
    weights = RunWeights(components, record, Store(file, [file]), config.settings.peft)
    unfinished = output.with_name(f"{output.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    size = write_store(
        unfinished, {tensor.name: weights.later(tensor) for tensor in record.tensors}
    )
    for path in (components / SOURCE).iterdir():
        if path.is_dir():
            shutil.copytree(path, unfinished / path.name)
        elif is_text(path):
            shutil.copy(path, unfinished)
    unfinished.rename(output)
    said = f"{len(record.tensors)} tensors, {size:,} bytes"
    return f"{said}; adapters added to {len(weights.adapted)} of them"


class RunWeights:
    """The tensors of a run in the names of the checkpoint that it was imported from.

    Args:
        components: the frozen parts' folders.
        record: of the import.
        trained: what checkpoints hold, in our names.
        peft: the adapters' settings, if there are any.

    Raises:
        UserError: a trained tensor that the checkpoint has no place for.
    """

    def __init__(
        self,
        components: Path,
        record: SourceRecord,
        trained: Store,
        peft: Peft | None,
    ) -> None:
        self._trained = trained
        self._places: dict[str, tuple[Store, str]] = {}
        for folder in record.folders:
            frozen = Store.of_folder(components / folder.name)
            self._places |= {folder.prefix + name: (frozen, name) for name in frozen}
        self._places |= {
            name.replace(_BASE, "."): (trained, name)
            for name in trained
            if not name.endswith((_A, _B))
        }
        left = components / SOURCE / LEFT_OUT
        self._left = Store(left, [left]) if left.is_file() else None
        self.adapted = {name.removesuffix(_A) for name in trained if name.endswith(_A)}
        self._scale = _scale(peft) if self.adapted else 0.0
        known = record.names().keys()
        for name in [*self._places, *(f"{layer}.weight" for layer in self.adapted)]:
            if name not in known:
                raise UserError(f"{name}: is trained, but the imported checkpoint has no such part")

    def later(self, tensor: SourceTensor) -> Later:
        """Return a tensor that will be read when it is written."""
        store, name = self._find(tensor)
        size = store.entries[name].size(tensor.dtype)
        return Later(size=size, read=partial(self._read, tensor))

    def _read(self, tensor: SourceTensor) -> Tensor:
        """Return a tensor as it is exported, in its type of old."""
        store, name = self._find(tensor)
        layer = "" if tensor.ours is None else tensor.ours.removesuffix(".weight")
        if layer not in self.adapted:
            return store[name].to(DTYPES[tensor.dtype])
        down, up = (self._trained[layer + end].float() for end in (_A, _B))
        return (store[name].float() + self._scale * (up @ down)).to(DTYPES[tensor.dtype])

    def _find(self, tensor: SourceTensor) -> tuple[Store, str]:
        if tensor.ours is not None:
            return self._places[tensor.ours]
        assert self._left is not None
        return self._left, tensor.name


def _scale(peft: Peft | None) -> float:
    """Return by what low-rank adapters are multiplied (Hu et al. 2021, §4.1).

    QLoRA's are added to the weights before their quantisation, as is usual; the sum is a little
    other than what was trained.
    """
    assert isinstance(peft, Lora | QLora)
    return peft.alpha / peft.rank
