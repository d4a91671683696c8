import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from etl.cli import RankError, UserError
from etl.storage import shards
from etl.storage.atomic import atomic_file, file_sha256, remove_partials
from etl.storage.manifest import Manifest, Shard, read_manifest
from etl.storage.schema import Medium, Sample, Turn, sha256
from etl.storage.shards import MAX_BATCH_ROWS, ShardSet, shard_name, write_folder, write_shard


def sample(number: int) -> Sample:
    data = number.to_bytes(4, "big") * 100
    medium = Medium(
        kind="image", data=data, mime="image/png", sha256=sha256(data), width=number, height=7
    )
    return Sample(
        id=f"sample-{number}",
        source="test",
        turns=(Turn(role="user", text="<image>"), Turn(role="assistant", text=f"number {number}")),
        media=(medium,),
        scores={"similarity": 0.5},
        lineage={"url": f"http://example.com/{number}"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(
        tmp_path / "shards", map(sample, range(700)), job="test", rows_per_shard=300
    )


def test_samples_come_back_as_written(folder: Path) -> None:
    samples = ShardSet([folder])
    assert len(samples) == 700
    for index in (0, 255, 256, 299, 300, 599, 600, 699):
        assert samples[index] == sample(index)
    assert samples[-1] == sample(699)


def test_media_are_read_when_they_are_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what is cached of them costs no reading; copies have them, wherever they go."""
    reads = []
    read = ShardSet._medium_data
    monkeypatch.setattr(
        ShardSet, "_medium_data", lambda *args: reads.append(args[1:]) or read(*args)
    )
    stored = ShardSet([folder])[301]
    assert (stored.media[0].kind, stored.media[0].height, reads) == ("image", 7, [])
    with pytest.raises(AttributeError, match="datum"):
        _ = stored.media[0].datum
    assert replace(stored.media[0], width=8) == replace(sample(301).media[0], width=8)
    assert stored == sample(301)
    assert reads == [(1, 1, 0)]
    copied = pickle.loads(pickle.dumps(ShardSet([folder])[301]))
    assert copied == sample(301)
    assert len(reads) == 2
    assert write_folder(folder.parent / "copy", [ShardSet([folder])[301]], job="test")
    assert ShardSet([folder.parent / "copy"])[0] == sample(301)


def test_an_index_past_the_end_is_an_index_error(folder: Path) -> None:
    samples = ShardSet([folder])
    with pytest.raises(IndexError, match="sample 700 of 700"):
        samples[700]
    assert sum(1 for _ in samples) == 700


def test_folders_are_read_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", map(sample, range(1000, 1003)), job="test")
    samples = ShardSet([folder, other])
    assert len(samples) == 703
    assert samples[700] == sample(1000)
    assert samples.fingerprint != ShardSet([other, folder]).fingerprint


def test_the_fingerprint_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    again = write_folder(tmp_path / "b", map(sample, range(700)), job="test", rows_per_shard=300)
    less = write_folder(tmp_path / "c", map(sample, range(699)), job="test", rows_per_shard=300)
    assert ShardSet([folder]).fingerprint == ShardSet([again]).fingerprint
    assert ShardSet([folder]).fingerprint != ShardSet([less]).fingerprint


def test_a_shard_set_can_be_pickled(folder: Path) -> None:
    samples = ShardSet([folder])
    assert samples[5] == sample(5)
    copy = pickle.loads(pickle.dumps(samples))
    assert copy[650] == sample(650)
    assert copy.fingerprint == samples.fingerprint


def test_columns_are_read_without_media(folder: Path) -> None:
    table = ShardSet([folder]).columns(["id", "media.width", "media.kind"])
    assert table["id"].to_pylist() == [f"sample-{number}" for number in range(700)]
    assert table["media.width"].to_pylist() == [[number] for number in range(700)]
    assert table["media.kind"][0].as_py() == ["image"]
    with pytest.raises(ValueError, match=r"media\.data"):
        ShardSet([folder]).columns(["media.data"])


def test_record_batches_are_bounded_by_rows_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path, "many.arrow", map(sample, range(600)))
    reader = pa.ipc.open_file(tmp_path / "many.arrow")
    assert [reader.get_batch(k).num_rows for k in range(3)] == [MAX_BATCH_ROWS, MAX_BATCH_ROWS, 88]
    monkeypatch.setattr("etl.storage.shards.MAX_BATCH_BYTES", 1000)
    write_shard(tmp_path, "heavy.arrow", map(sample, range(7)))
    reader = pa.ipc.open_file(tmp_path / "heavy.arrow")
    assert [reader.get_batch(k).num_rows for k in range(3)] == [3, 3, 1]


def damage_missing(folder: Path) -> None:
    (folder / "shard-00001.arrow").unlink()


def damage_length(folder: Path) -> None:
    with (folder / "shard-00001.arrow").open("ab") as stream:
        stream.write(b"more")


def damage_bit(folder: Path) -> None:
    data = bytearray((folder / "shard-00001.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "shard-00001.arrow").write_bytes(data)


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def damage_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def damage_counts(folder: Path) -> None:
    value = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**value, "input_rows": 701}))


def damage_version(folder: Path) -> None:
    value = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**value, "schema_version": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, r"shard-00001\.arrow: shard is missing"),
        (damage_length, r"shard-00001\.arrow: shard is damaged: \d+ bytes, its manifest says \d+"),
        (damage_bit, r"shard-00001\.arrow: shard is damaged: sha256 \w{12}…, .* says \w{12}…"),
        (damage_manifest, r"not complete, or not written by an ETL job"),
        (damage_json, r"manifest\.json: not a manifest"),
        (damage_counts, r"701 input rows are not 700 rows \+ 0 drops"),
        (damage_version, r"schema version 99, want 1"),
    ],
)
def test_damage_is_reported_in_one_line(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        ShardSet([folder])
    assert "\n" not in str(caught.value)


def test_missing_and_empty_folders_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        ShardSet([tmp_path / "nowhere"])
    empty = write_folder(tmp_path / "empty", [], job="test")
    with pytest.raises(UserError, match="holds no samples"):
        ShardSet([empty])
    with pytest.raises(UserError, match="no data folder"):
        ShardSet([])


def test_another_file_is_not_a_shard(folder: Path) -> None:
    path = folder / "shard-00001.arrow"
    path.write_bytes(b"x" * path.stat().st_size)
    samples = ShardSet([folder], verify=False)
    with pytest.raises(UserError, match="not an Arrow IPC file"):
        samples[300]


def test_counts_must_add_up() -> None:
    shard = Shard(path="a", rows=5, bytes=1, sha256="")
    fields = {"job": "test", "plan": {}, "rows": 5, "shards": (shard,)}
    assert Manifest(**fields, input_rows=7, drops={"timeout": 2}).rows == 5
    with pytest.raises(ValueError, match="7 input rows are not 5 rows"):
        Manifest(**fields, input_rows=7, drops={"timeout": 1})
    with pytest.raises(ValueError, match="6 rows, but the shards hold 5"):
        Manifest(**{**fields, "rows": 6}, input_rows=6, drops={})


def test_the_manifest_comes_back_as_written(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert (manifest.job, manifest.input_rows, manifest.rows) == ("test", 700, 700)
    assert [shard.rows for shard in manifest.shards] == [300, 300, 100]


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def fails():
        yield sample(0)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_shard(tmp_path, "shard-00000.arrow", fails())
    assert list(tmp_path.iterdir()) == []


def test_a_writer_killed_while_writing_leaves_no_partial_shard(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.etl.storage.test_shards import sample
from etl.storage.shards import write_shard

def samples():
    for number in range(10_000):
        if number == 1000:  # several record batches have been written
            os.kill(os.getpid(), signal.SIGKILL)
        yield sample(number)

write_shard(Path(sys.argv[1]), "shard-00000.arrow", samples())
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(root)], check=False, env=dict(os.environ)
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "shard-00000.arrow").exists()
    remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_atomic_file_replaces_the_old_one_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_file(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with atomic_file(path) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_deleted_shard_that_is_mapped_can_still_be_read(folder: Path) -> None:
    samples = ShardSet([folder])
    first = samples[300]
    (folder / "shard-00001.arrow").unlink()
    assert samples[300] == first
    (folder / "shard-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"shard-00002\.arrow: has vanished; put it back"):
        samples[-1]


@pytest.mark.parametrize("opened", [False, True])
def test_a_changed_shard_is_reported_before_it_is_read(folder: Path, *, opened: bool) -> None:
    """Truncated, it would crash the process; with other bytes, it would return other samples."""
    samples = ShardSet([folder])
    path = folder / "shard-00001.arrow"
    data = path.read_bytes()
    if opened:
        _ = samples[300]
    for changed in (data[: len(data) // 2], b"x" * len(data)):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"shard-00001\.arrow: has changed .* sha256 \w{12}…"):
            _ = samples[300]
    path.write_bytes(data)  # restored: another file with the same bytes
    assert samples[300].id == ShardSet([folder])[300].id


def test_an_unreadable_shard_is_reported(folder: Path) -> None:
    samples = ShardSet([folder])
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("no folder")
    with pytest.raises(UserError, match=r"shard-00000\.arrow: cannot be read \(Not a directory\)"):
        _ = samples[0]


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the shards whose bytes are read from now on, as they are."""
    names: list[str] = []

    def read(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(shards, "file_sha256", read)
    return names


def test_each_rank_verifies_its_share_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, map(sample, range(10)), job="test", rows_per_shard=2)
    read = hashed(monkeypatch)
    for rank in range(2):
        ShardSet([folder], rank=rank, ranks=2)
    assert read == [shard_name(number) for number in (0, 2, 4, 1, 3)]
    read.clear()
    for rank in range(3):  # the stamps are those of the data, whatever the ranks
        ShardSet([folder], rank=rank, ranks=3)
    assert read == []
    os.utime(folder / shard_name(3), (0, 0))
    ShardSet([folder])
    ShardSet([folder])
    assert read == [shard_name(3)]


def test_a_damaged_shard_is_noticed_by_one_rank_and_is_not_stamped(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, map(sample, range(4)), job="test", rows_per_shard=2)
    path = folder / shard_name(1)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    ShardSet([folder], rank=0, ranks=2)
    for _ in range(2):
        with pytest.raises(RankError, match=rf"{path}: shard is damaged: sha256"):
            ShardSet([folder], rank=1, ranks=2)
    path.write_bytes(good)
    ShardSet([folder], rank=1, ranks=2)


def test_stamps_of_data_that_cannot_be_written_are_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "data", map(sample, range(4)), job="test", rows_per_shard=2)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    read = hashed(monkeypatch)
    for _ in range(2):
        ShardSet([folder], stamps=tmp_path / "run")
    assert read == [shard_name(0), shard_name(1)]
    ShardSet([folder])
    assert len(read) == 4
    assert not (folder / ".verified").exists()


def test_few_shards_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may hold 65,530 memory maps; a corpus may have more shards."""
    folder = write_folder(tmp_path, map(sample, range(12)), job="test", rows_per_shard=1)
    monkeypatch.setattr(shards, "MAX_OPEN_SHARDS", 3)
    opened = ShardSet([folder], verify=False)
    order = [*range(12), 11, 10, *range(12)]
    assert [opened[index].id for index in order] == [f"sample-{index}" for index in order]
    maps = Path("/proc/self/maps").read_text()
    assert sum(str(folder / shard_name(number)) in maps for number in range(12)) == 3
