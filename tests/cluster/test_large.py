"""A shard of more than 2 GiB of media is written, thinned out and read in bounded memory.

No cluster is needed, but a disk with room for two such shards, and some seconds.
"""

import multiprocessing
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from etl.storage.manifest import Manifest, write_manifest
from etl.storage.schema import Medium, Sample, Turn, sha256
from etl.storage.shards import ShardSet, copy_rows, write_shard

pytestmark = [pytest.mark.cluster, pytest.mark.nightly, pytest.mark.timeout(300)]

ROWS, SIZE = 66, 32 << 20  # 2.06 GiB
MEMORY = 768 << 20


def video(row: int) -> bytes:
    return row.to_bytes(4, "big") * (SIZE // 4)


def samples() -> Iterator[Sample]:
    turns = (Turn(role="user", text="<video>"), Turn(role="assistant", text="said"))
    for row in range(ROWS):
        data = video(row)
        medium = Medium(kind="video", data=data, mime="video/mp4", sha256=sha256(data))
        yield Sample(id=str(row), source="t", turns=turns, media=(medium,))


def write(folder: Path, told: multiprocessing.SimpleQueue) -> None:
    """What a worker does: stage a range's shard, then write the final one, without one row."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))  # heap and private mappings
    staged = write_shard(folder, "staged.arrow", samples())
    keep = pa.array([row != 1 for row in range(ROWS)])
    final = copy_rows(folder / staged.path, folder / "shard-00000.arrow", keep)
    told.put((staged, final))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    if shutil.disk_usage(tmp_path).free < 3 * ROWS * SIZE:
        pytest.skip("too little room on the disk")
    yield tmp_path / "shards"
    shutil.rmtree(tmp_path / "shards", ignore_errors=True)


def test_more_than_2_gib_in_a_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "system")  # others reserve ahead
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    process = context.Process(target=write, args=(folder, told))
    process.start()
    process.join()
    assert process.exitcode == 0
    staged, final = told.get()
    assert (staged.rows, final.rows) == (ROWS, ROWS - 1)
    assert final.bytes > 2 << 30
    (folder / staged.path).unlink()
    rows = final.rows
    write_manifest(
        folder,
        Manifest(job="t", plan={}, input_rows=rows, rows=rows, drops={}, shards=(final,)),
    )
    found = ShardSet([folder])
    assert [found[index].id for index in (0, 1)] == ["0", "2"]
    last = found[-1]
    assert last.media[0].data == video(ROWS - 1)
