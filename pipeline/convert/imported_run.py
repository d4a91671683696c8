"""An imported run with the names, types and files of its import, and weights as trained."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from torch import Tensor

from etl.cli import UserError
from model.peft.lora import merged_weight
from model.spec.peft import Lora, Peft
from pipeline.config.run_config import RunConfig
from pipeline.convert.safetensors_store import (
    DTYPES,
    LazyTensor,
    SafetensorsStore,
    write_tensors,
)
from pipeline.convert.source_record import (
    LEFT_OUT,
    SOURCE,
    SourceRecord,
    SourceTensor,
    is_config_file,
    read_record,
)

_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"
_MAGNITUDE = ".lora_magnitude_vector.default.weight"
_BASE = ".base_layer."


def write_imported_run(config: RunConfig, components: Path, weights: Path, output: Path) -> str:
    """Write a transformers checkpoint with the names, types and files of the imported one.

    Low-rank adapters are merged into the weights that they adapt. No more than one file's tensors
    are in memory at once, and no model is built.

    Args:
        config: of the run.
        components: the import's folder of frozen components.
        weights: the run's trained weights.
        output: an existing folder.

    Returns:
        A line with the number and size of the tensors.

    Raises:
        UserError: the run has trained weights unknown to the checkpoint.
    """
    record = read_record(components)
    tensors = RunWeights(
        components, record, SafetensorsStore(weights, [weights]), config.settings.peft
    )
    size = write_tensors(output, {tensor.name: tensors.lazy(tensor) for tensor in record.tensors})
    for path in (components / SOURCE).iterdir():
        if path.is_dir():
            shutil.copytree(path, output / path.name)
        elif is_config_file(path):
            shutil.copy(path, output)
    total = f"{len(record.tensors)} tensors, {size:,} bytes"
    return f"{total}; adapters merged into {len(tensors.adapted)} of them"


class RunWeights:
    """The tensors of a run under their names in the imported checkpoint.

    Args:
        components: folder of the frozen components.
        record: of the import.
        trained: the run's checkpoint, in our names.
        peft: the adapters' settings, if there are any.

    Raises:
        UserError: a trained tensor that the imported checkpoint does not have.
    """

    def __init__(
        self,
        components: Path,
        record: SourceRecord,
        trained: SafetensorsStore,
        peft: Peft | None,
    ) -> None:
        self._trained = trained
        self._sources: dict[str, tuple[SafetensorsStore, str]] = {}
        for folder in record.folders:
            frozen = SafetensorsStore.of_folder(components / folder.name)
            self._sources |= {folder.prefix + name: (frozen, name) for name in frozen}
        self._sources |= {
            name.replace(_BASE, "."): (trained, name)
            for name in trained
            if not name.endswith((_A, _B, _MAGNITUDE))
        }
        left_out = components / SOURCE / LEFT_OUT
        self._left_out = SafetensorsStore(left_out, [left_out]) if left_out.is_file() else None
        self.adapted = {name.removesuffix(_A) for name in trained if name.endswith(_A)}
        self._scale = peft.scale if isinstance(peft, Lora) else 0.0
        names = record.names().keys()
        for name in [*self._sources, *(f"{layer}.weight" for layer in self.adapted)]:
            if name not in names:
                raise UserError(
                    f"{name}: is trained, but the imported checkpoint has no such tensor"
                )

    def lazy(self, tensor: SourceTensor) -> LazyTensor:
        """Return a tensor to be read when it is written."""
        store, name = self._find(tensor)
        size = store.entries[name].size(tensor.dtype)
        return LazyTensor(size=size, read=partial(self._read, tensor))

    def _read(self, tensor: SourceTensor) -> Tensor:
        """Return a tensor for export, in the dtype of the imported checkpoint."""
        store, name = self._find(tensor)
        layer = "" if tensor.ours is None else tensor.ours.removesuffix(".weight")
        if layer not in self.adapted:
            return store[name].to(DTYPES[tensor.dtype])
        magnitude = layer + _MAGNITUDE
        merged = merged_weight(
            store[name],
            down_ri=self._trained[layer + _A],
            up_or=self._trained[layer + _B],
            scale=self._scale,
            magnitude_o=self._trained.get(magnitude),
        )
        return merged.to(DTYPES[tensor.dtype])

    def _find(self, tensor: SourceTensor) -> tuple[SafetensorsStore, str]:
        if tensor.ours is not None:
            return self._sources[tensor.ours]
        assert self._left_out is not None
        return self._left_out, tensor.name
