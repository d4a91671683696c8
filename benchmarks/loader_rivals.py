"""The other libraries of `loader.py`: how each format is written, and its JPEG files are read.

Their packages are imported where they are used, so that each is optional.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CAPTION = "A photograph of something, taken somewhere, as a caption of ordinary length might say"


@dataclass(frozen=True)
class Rival:
    """Another library and its format.

    Args:
        name: for the table.
        module: that must be installed.
        write: writes JPEG files to a folder.
        read: reads JPEG files from the folder by row.
        random: whether rows can be read in any order.
    """

    name: str
    module: str
    write: Callable[[Path, Sequence[bytes]], None]
    read: Callable[[Path, Sequence[int]], Iterator[bytes]]
    random: bool = True


def write_webdataset(folder: Path, files: Sequence[bytes]) -> None:
    """Write one tar file."""
    folder.mkdir()
    with tarfile.open(folder / "shard-00000.tar", "w") as tar:
        for number, data in enumerate(files):
            for ending, content in (("jpg", data), ("txt", CAPTION.encode())):
                entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def read_webdataset(folder: Path, rows: Sequence[int]) -> Iterator[bytes]:
    """Read the tar file in its order, the only one without a shuffle buffer."""
    import webdataset as wds  # noqa: PLC0415

    data = wds.WebDataset(str(folder / "shard-00000.tar"), shardshuffle=False, empty_check=False)
    yield from (entry["jpg"] for entry in data)


def write_datasets(folder: Path, files: Sequence[bytes]) -> None:
    """Write an Arrow data set of bytes and texts."""
    import datasets  # noqa: PLC0415

    columns = {"jpg": list(files), "txt": [CAPTION] * len(files)}
    features = datasets.Features({"jpg": datasets.Value("binary"), "txt": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))


def read_datasets(folder: Path, rows: Sequence[int]) -> Iterator[bytes]:
    """Read rows by number."""
    import datasets  # noqa: PLC0415

    data = datasets.load_from_disk(str(folder))
    yield from (data[row]["jpg"] for row in rows)


def write_streaming(folder: Path, files: Sequence[bytes]) -> None:
    """Write MDS shards."""
    from streaming import MDSWriter  # noqa: PLC0415

    with MDSWriter(out=str(folder), columns={"jpg": "bytes", "txt": "str"}) as writer:
        for data in files:
            writer.write({"jpg": data, "txt": CAPTION})


def read_streaming(folder: Path, rows: Sequence[int]) -> Iterator[bytes]:
    """Read rows by number."""
    from streaming import LocalDataset  # noqa: PLC0415

    data = LocalDataset(str(folder))
    yield from (data[row]["jpg"] for row in rows)


RIVALS = (
    Rival("webdataset", "webdataset", write_webdataset, read_webdataset, random=False),
    Rival("HF datasets", "datasets", write_datasets, read_datasets),
    Rival("mosaicml-streaming", "streaming", write_streaming, read_streaming),
)
