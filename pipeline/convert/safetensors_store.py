"""Checkpoints of transformers, read and written one tensor at a time."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from etl.cli import UserError
from etl.storage.atomic import write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_TORCH_SINGLE = "pytorch_model.bin"
_TORCH_INDEX = "pytorch_model.bin.index.json"
SHARD_BYTES = 5_000_000_000
"""Largest size of a file, and so of the tensors in memory at once."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Safetensors' names of the dtypes of transformers checkpoints."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The header of a tensor; `dtype` is safetensors' name of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    def size(self, dtype: str) -> int:
        """Return the tensor's size in bytes in a dtype, its own or another."""
        return math.prod(self.shape) * DTYPES[dtype].itemsize


@dataclass(frozen=True, kw_only=True)
class LazyTensor:
    """A tensor that is read only when it is written: its size in bytes, and how to read it."""

    size: int
    read: Callable[[], Tensor]


class _TorchSlice:
    """A tensor with the interface of a slice of a safetensors file."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def get_dtype(self) -> str:
        return _NAMES.get(self._tensor.dtype, str(self._tensor.dtype))

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)


class _TorchFile:
    """A file of `torch.save`, memory-mapped, with the interface of a safetensors file."""

    def __init__(self, file: Path) -> None:
        self._tensors: dict[str, Tensor] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=True
        )

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_slice(self, name: str) -> _TorchSlice:
        return _TorchSlice(self._tensors[name])

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def _open_file(file: Path) -> Any:  # noqa: ANN401 -- safetensors' file, which has no type
    try:
        if file.suffix == ".safetensors":
            return safe_open(file, framework="pt")
        return _TorchFile(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: not a valid safetensors file ({error})") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: cannot be read by torch ({reason})") from None


class SafetensorsStore(Mapping[str, Tensor]):
    """The tensors of checkpoint files by name; each is read on access, memory-mapped.

    Args:
        path: of the folder or file, for messages.
        files: with distinct tensor names; safetensors, or torch's format (loaded with
            `weights_only`).
        rename: from a file's name of a tensor to the name here.

    Raises:
        UserError: a damaged file, or a name in two files.
    """

    def __init__(
        self, path: Path, files: list[Path], rename: Callable[[str], str] = lambda name: name
    ) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._open: dict[Path, Any] = {}
        self._stored: dict[str, str] = {}
        for file in files:
            self._open[file] = _open_file(file)
            for stored in self._open[file].keys():  # noqa: SIM118 -- no mapping
                name = rename(stored)
                if name in self.entries:
                    raise UserError(f"{file}: {name} is in another file, too")
                view = self._open[file].get_slice(stored)
                if view.get_dtype() not in DTYPES:
                    raise UserError(f"{file}: {name} has the unsupported dtype {view.get_dtype()}")
                self._stored[name] = stored
                self.entries[name] = Entry(
                    file=file, shape=tuple(view.get_shape()), dtype=view.get_dtype()
                )

    @classmethod
    def of_folder(cls, folder: Path) -> SafetensorsStore:
        """Open the checkpoint of a folder, in one file or in shards.

        Raises:
            UserError: no checkpoint, or its files do not match its index.
        """
        pairs = ((INDEX, SINGLE), (_TORCH_INDEX, _TORCH_SINGLE))
        found = next((folder / n for pair in pairs for n in pair if (folder / n).is_file()), None)
        if found is None:
            raise UserError(f"{folder}: has no {SINGLE} and no {INDEX}")
        if found.name in (SINGLE, _TORCH_SINGLE):
            return cls(folder, [found])
        index = found
        try:
            weight_map: Mapping[str, str] = json.loads(index.read_bytes())["weight_map"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{index}: not an index of shards ({error})") from None
        store = cls(folder, [folder / name for name in sorted(set(weight_map.values()))])
        different = sorted(weight_map.keys() ^ store.keys())
        if different:
            raise UserError(f"{index}: {different[0]} is in the index or in a file, not in both")
        return store

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""
        tensor: Tensor = self._open[self.entries[name].file].get_tensor(self._stored[name])
        return tensor

    def lazy(self, name: str) -> LazyTensor:
        """Return one tensor to be read later."""
        entry = self.entries[name]
        return LazyTensor(size=entry.size(entry.dtype), read=partial(self.__getitem__, name))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.entries)


def write_tensors(folder: Path, tensors: Mapping[str, LazyTensor]) -> int:
    """Write the tensors of a transformers checkpoint, in shards if needed; return their bytes.

    Only one file's tensors are in memory at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.size,
        get_storage_id=lambda _: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        # Cloned: two names may share the memory of one tensor, which `save_file` refuses.
        loaded = {
            name: tensors[name].read().clone(memory_format=torch.contiguous_format)
            for name in names
        }
        save_file(loaded, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        write_json(
            folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        )
    return sum(tensor.size for tensor in tensors.values())
