"""Folders of safetensors, read and written one tensor at a time."""

from __future__ import annotations

import json
import math
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
SHARD_BYTES = 5_000_000_000
"""Largest file, and so the most that is held in memory at once."""

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
"""Safetensors' names of what a transformers checkpoint holds."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor that can be read; `dtype` is safetensors' name for it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    def size(self, dtype: str) -> int:
        """Return the tensor's bytes as another type, or its own."""
        return math.prod(self.shape) * DTYPES[dtype].itemsize


@dataclass(frozen=True, kw_only=True)
class Later:
    """A tensor that will be read when it is written: its bytes, and how."""

    size: int
    read: Callable[[], Tensor]


class Store(Mapping[str, Tensor]):
    """The tensors of safetensors files by name; each is read, memory-mapped, when it is asked for.

    Args:
        place: the folder or file, for messages.
        files: no name may stand in two of them.

    Raises:
        UserError: a damaged file, or a name that stands twice.
    """

    def __init__(self, place: Path, files: list[Path]) -> None:
        self.place = place
        self.entries: dict[str, Entry] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file}: not a sound safetensors file ({error})") from None
            for name in self._open[file].keys():  # noqa: SIM118 -- no mapping
                if name in self.entries:
                    raise UserError(f"{file}: {name} stands in another file, too")
                view = self._open[file].get_slice(name)
                if view.get_dtype() not in DTYPES:
                    raise UserError(f"{file}: {name} is {view.get_dtype()}: want a plain dtype")
                self.entries[name] = Entry(
                    file=file, shape=tuple(view.get_shape()), dtype=view.get_dtype()
                )

    @classmethod
    def of_folder(cls, folder: Path) -> Store:
        """Open the checkpoint of a folder, in one file or in shards.

        Raises:
            UserError: none there, or not the files that its index names.
        """
        index = folder / INDEX
        if not index.is_file():
            if not (folder / SINGLE).is_file():
                raise UserError(f"{folder}: holds no {SINGLE} and no {INDEX}")
            return cls(folder, [folder / SINGLE])
        try:
            listed: Mapping[str, str] = json.loads(index.read_bytes())["weight_map"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{index}: not an index of shards ({error})") from None
        store = cls(folder, [folder / name for name in sorted(set(listed.values()))])
        odd = sorted(listed.keys() ^ store.keys())
        if odd:
            raise UserError(f"{index}: {odd[0]} stands in the index or in its file, not in both")
        return store

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor."""
        tensor: Tensor = self._open[self.entries[name].file].get_tensor(name)
        return tensor

    def later(self, name: str) -> Later:
        """Return one tensor that is not read yet."""
        entry = self.entries[name]
        return Later(size=entry.size(entry.dtype), read=partial(self.__getitem__, name))

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.entries)


def write_store(folder: Path, tensors: Mapping[str, Later]) -> int:
    """Write a transformers checkpoint's tensors, in shards if they are many; return their bytes.

    No more than one file's tensors are in memory at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda later: later.size,
        get_storage_id=lambda _: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        # Copies: a file that holds a tensor twice may name one place of another file twice.
        read = {
            name: tensors[name].read().clone(memory_format=torch.contiguous_format)
            for name in names
        }
        save_file(read, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        write_json(
            folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        )
    return sum(later.size for later in tensors.values())
