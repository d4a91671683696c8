"""Work units from candidates to final shards, with a fake backend and without Ray."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from etl.cli import UserError
from etl.digits import tones
from etl.digits.records import pair, pair_sample
from etl.digits.scenes import encode, render
from etl.download.base import DownloadLimits, Fetched, FetchOptions
from etl.filters.base import StepYield
from etl.media.faces import BOXES
from etl.media.gather import MediaOptions
from etl.media.image import ImageLimits
from etl.runtime.job_state import JobState, read_table, write_table
from etl.runtime.worker import (
    DownloadWorker,
    FinalShardWriter,
    KeptRows,
    WorkerSpec,
    WorkUnit,
)
from etl.sources.base import CANDIDATES, Format, Identity, MediaRef, Record, RecordReader
from etl.storage.manifest import Manifest, write_manifest
from etl.storage.schema import Sample, Turn
from etl.storage.shards import ShardSet

PICTURES = [encode(render(pair(0, number).scene), "image/jpeg") for number in range(3)]
WEB = {
    "http://web/0": Fetched(data=PICTURES[0]),
    "http://web/1": Fetched(data=PICTURES[1]),
    "http://web/mirror": Fetched(data=PICTURES[0]),
    "http://web/page": Fetched(data=b"<html>"),
    "http://web/gone": Fetched(reason="http_404", detail="HTTP Error 404: Not Found"),
}


class FakeBackend:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def stream(self, urls: Sequence[str], finish):
        for index, url in enumerate(urls):
            self.asked.append(url)
            yield finish(index, WEB[url])


@pytest.fixture(autouse=True)
def fake_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl.runtime.worker.make_backend", lambda name, options: FakeBackend())


def spec(output: Path, identity: Identity = "medium") -> WorkerSpec:
    limits = DownloadLimits(max_bytes=10**6, deadline=1, allow_private=True)
    return WorkerSpec(
        output=output,
        source="test",
        identity=identity,
        backend="img2dataset",
        fetch=FetchOptions(threads=1, timeout=1, retries=0, user_agent=None, limits=limits),
        image=ImageLimits(min_side=64, max_aspect=3, max_pixels=10**6),
    )


def candidates(urls: Sequence[str], first: int = 0) -> pa.Table:
    rows = range(first, first + len(urls))
    columns = {
        "row": rows,
        "id": [f"id-{row}" for row in rows],
        "url": urls,
        "turns": [list(map(vars, pair_sample(0, row).turns)) for row in rows],
        "lineage": [json.dumps({"kind": "sum"})] * len(urls),
    }
    scores = pa.array([0.5, None, *[0.25] * len(urls)][: len(urls)], pa.float32())
    return pa.table(columns, schema=CANDIDATES).append_column("score.similarity", scores)


def stage(output: Path, units: Sequence[Sequence[str]], identity: Identity = "medium") -> JobState:
    """Plan the units, and process each with a worker."""
    state = JobState(output)
    tables, first = [], 0
    for urls in units:
        tables.append(candidates(urls, first))
        first += len(urls)
    state.work.mkdir(parents=True)
    with pa.ipc.new_file(state.candidates_path, tables[0].schema) as writer:
        for table in tables:
            writer.write_batch(table.combine_chunks().to_batches()[0])
    worker = DownloadWorker(spec(output, identity))
    for number, urls in enumerate(units):
        assert worker(WorkUnit(number=number)) == len(urls)
    return state


def staged(state: JobState, number: int) -> list[Sample]:
    result = state.unit_result(number)
    manifest = Manifest(
        job="test",
        plan={},
        input_rows=result.shard.rows,
        rows=result.shard.rows,
        drops={},
        shards=(result.shard,),
    )
    write_manifest(state.unit_folder(number), manifest)
    found = ShardSet([state.unit_folder(number)])
    return [found[index] for index in range(len(found))]


def test_a_unit_becomes_samples_drops_and_a_result(tmp_path: Path) -> None:
    urls = ["http://web/0", "http://web/gone", "http://web/page", "http://web/1"]
    state = stage(tmp_path / "out", [urls])
    first, second = staged(state, 0)
    assert first.media[0].data == PICTURES[0]
    assert (first.media[0].width, first.media[0].mime) == (96, "image/jpeg")
    assert first.scores == {"similarity": 0.5}
    assert first.lineage == {"url": "http://web/0", "row": "0", "kind": "sum"}
    assert (second.id, second.turns) == ("id-3", pair_sample(0, 3).turns)
    drops = read_table(state.drops_path(0))
    assert drops.select(["row", "step", "reason", "detail"]).to_pylist() == [
        {
            "row": 1,
            "step": "download",
            "reason": "http_404",
            "detail": "HTTP Error 404: Not Found",
        },
        {"row": 2, "step": "decode", "reason": "wrong_type", "detail": None},
    ]
    assert state.unit_result(0).yields == (
        StepYield(step="download", rows_in=4, rows_out=3),
        StepYield(step="decode", rows_in=3, rows_out=2),
    )


def test_a_unit_without_valid_rows_is_done_too(tmp_path: Path) -> None:
    state = stage(tmp_path / "out", [["http://web/gone", "http://web/page"]])
    assert state.unit_result(0).shard is None
    assert read_table(state.keys_path(0)).num_rows == 0


def test_duplicates_have_equal_keys(tmp_path: Path) -> None:
    urls = ["http://web/0", "http://web/mirror", "http://web/1"]
    by_medium = read_table(stage(tmp_path / "a", [urls], "medium").keys_path(0))["key"].to_pylist()
    assert by_medium[0] == by_medium[1] != by_medium[2]
    by_record = read_table(stage(tmp_path / "b", [urls], "record").keys_path(0))["key"].to_pylist()
    assert len(set(by_record)) == 3  # the same image, but different captions


def test_final_shards_leave_duplicates_out(tmp_path: Path) -> None:
    output = tmp_path / "out"
    state = stage(output, [["http://web/0", "http://web/1"], ["http://web/mirror", "http://web/1"]])
    write = FinalShardWriter(output)
    write(KeptRows(unit=0, rows=[0, 1]))
    write(KeptRows(unit=1, rows=[3]))
    shards = (state.final_shard(0), state.final_shard(1))
    assert [shard.rows for shard in shards] == [2, 1]
    manifest = Manifest(job="t", plan={}, input_rows=3, rows=3, drops={}, shards=shards)
    write_manifest(output, manifest)
    samples = ShardSet([output])
    assert [samples[index].id for index in range(3)] == ["id-0", "id-1", "id-3"]


def test_a_unit_that_keeps_all_rows_is_linked_and_has_the_same_bytes_as_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    state = stage(output, [["http://web/0", "http://web/1"]])
    write, task = FinalShardWriter(output), KeptRows(unit=0, rows=[0, 1])
    write(task)
    linked, shard = output / "shard-00000.arrow", state.final_shard(0)
    assert linked.samefile(state.staged_path(0))
    write(task)  # as after a kill before the result was reported
    assert [path.name for path in output.glob(".*.partial")] == []
    whole = linked.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError("no links on this file system")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write(task)
    assert not linked.samefile(state.staged_path(0))
    assert (linked.read_bytes(), state.final_shard(0)) == (whole, shard)


def test_a_result_without_its_shard_does_not_count(tmp_path: Path) -> None:
    state = stage(tmp_path / "out", [["http://web/0"]])
    assert state.unit_result(0)
    state.remove_partial_work()
    assert state.unit_result(0)
    state.staged_path(0).write_bytes(b"")
    state.remove_partial_work()
    assert state.unit_result(0) is None
    assert state.unit_result(1) is None
    assert state.final_shard(0) is None


def test_a_unit_that_is_done_again_does_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = stage(tmp_path / "out", [["http://web/0", "http://web/1"]])
    before = {path.name: path.read_bytes() for path in state.unit_folder(0).iterdir()}
    monkeypatch.setitem(WEB, "http://web/1", Fetched(reason="timeout"))  # the web has changed
    worker = DownloadWorker(spec(state.output))
    worker(WorkUnit(number=0))
    assert {path.name: path.read_bytes() for path in state.unit_folder(0).iterdir()} == before
    assert [path.name for path in state.work.glob(".*")] == []


def test_a_worker_that_outlives_its_job_does_not_recreate_its_state(tmp_path: Path) -> None:
    state = stage(tmp_path / "out", [["http://web/0"]])
    worker, table = DownloadWorker(spec(state.output)), state.unit_candidates(0)
    (state.output / "kept").touch()
    state.discard()
    with pytest.raises(FileNotFoundError):
        worker.process(0, table)
    assert [path.name for path in state.output.iterdir()] == ["kept"]


def test_tables_are_read_as_written(tmp_path: Path) -> None:
    table = candidates(["http://web/0", "http://web/1"])
    write_table(tmp_path / "table.arrow", table)
    assert read_table(tmp_path / "table.arrow").equals(table)


def test_a_unit_without_dns_is_an_error_and_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"http://host{number}.example/x" for number in range(30)]
    failed = Fetched(reason="dns_temporary", detail="Temporary failure in name resolution")

    monkeypatch.setattr(f"{__name__}.WEB", dict.fromkeys(urls, failed))
    state = JobState(tmp_path / "out")
    state.work.mkdir(parents=True)
    with pytest.raises(UserError, match="30 of 30 hosts"):
        DownloadWorker(spec(state.output)).process(0, candidates(urls))
    assert state.unit_result(0) is None
    retried = dataclasses.replace(spec(state.output), stop_on_dns_outage=False)
    DownloadWorker(retried).process(0, candidates(urls))
    assert state.unit_result(0)


def process(
    folder: Path, records: Sequence[Record], options: MediaOptions
) -> tuple[JobState, list[str]]:
    """Process one unit of records; returns the state and the URLs that were requested."""
    listing = folder / "list.x"
    listing.write_text("x")
    fmt = Format(suffixes=(".x",), rows=lambda _: records, parse=lambda record: [record])
    (table,) = RecordReader("test", listing, fmt).read(100)
    backend = FakeBackend()
    output = folder / "out"
    (output / ".work").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("etl.runtime.worker.make_backend", lambda name, options: backend)
        worker = DownloadWorker(dataclasses.replace(spec(output, "record"), media=options))
    worker.process(0, table)
    return JobState(output), backend.asked


def record(text: str, *urls: str, **more: object) -> Record:
    turns = (Turn(role="user", text=text), Turn(role="assistant", text="said"))
    media = tuple(MediaRef(kind="image", url=url) for url in urls)
    return Record(turns=turns, media=media, **more)


def test_records_with_shared_failed_or_no_media(tmp_path: Path) -> None:
    records = [
        record("<image>what?", "http://web/0"),
        record("text"),
        record("<image><image>which?", "http://web/1", "http://web/0"),
        record("<image> and <image>", "http://web/0", "http://web/gone"),
    ]
    state, asked = process(tmp_path, records, MediaOptions())
    assert asked == ["http://web/0", "http://web/1", "http://web/gone"]
    assert [len(sample.media) for sample in staged(state, 0)] == [1, 0, 2]
    drops = read_table(state.drops_path(0)).to_pylist()
    assert [(drop["row"], drop["reason"]) for drop in drops] == [(3, "http_404")]
    assert read_table(state.keys_path(0))["url"].to_pylist() == [
        "http://web/0",
        None,
        "http://web/1",
    ]


def test_documents_are_kept_without_failed_images(tmp_path: Path) -> None:
    records = [record("<image>\nand <image>", "http://web/gone", "http://web/1")]
    state, _ = process(tmp_path, records, MediaOptions(on_lost="remove"))
    (sample,) = staged(state, 0)
    assert sample.turns[0].text == "and <image>"
    assert sample.media[0].data == PICTURES[1]
    assert json.loads(sample.lineage["lost_media"]) == ["http://web/gone http_404"]


def test_preferences_reach_the_shard(tmp_path: Path) -> None:
    more = {"rejected": (Turn(role="assistant", text="no"),), "lineage": {"idx": "7"}}
    feedback = (Turn(role="user", text="wrong"),)
    records = [record("<image>?", "http://web/0", feedback=feedback, **more)]
    state, _ = process(tmp_path, records, MediaOptions())
    (sample,) = staged(state, 0)
    assert (sample.rejected, sample.feedback) == (more["rejected"], feedback)
    assert sample.lineage == {"url": "http://web/0", "row": "0", "idx": "7"}


def test_lineage_has_the_names_of_local_files(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.jpg").write_bytes(PICTURES[0])
    options = MediaOptions(locations=(str(tmp_path / "media"),))
    state, asked = process(tmp_path, [record("<image>?", "train/a.jpg")], options)
    (sample,) = staged(state, 0)
    assert (asked, sample.lineage["file"]) == ([], "train/a.jpg")


def test_measurements_of_media_become_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves = [
        tones.render(tones.Dialling(digits=(digit,) * 3, phone=0, seed=digit)) for digit in (1, 2)
    ]
    sounds = [
        tones.encode(wave * gain, "audio/wav") for wave, gain in zip(waves, (1, 0.1), strict=True)
    ]
    for number, data in enumerate(sounds):
        monkeypatch.setitem(WEB, f"http://web/sound{number}", Fetched(data=data))
    media = tuple(MediaRef(kind="audio", url=f"http://web/sound{number}") for number in range(2))
    turns = (Turn(role="user", text="<audio><audio>"),)
    both = Record(turns=turns, media=media)
    one = Record(turns=(Turn(role="user", text="<audio>"),), media=media[:1])
    state, _ = process(tmp_path, [both, one], MediaOptions())
    pair, single = staged(state, 0)
    assert set(single.scores) == {"duration", "loudness_dbfs"}
    assert pair.scores["loudness_dbfs"] < single.scores["loudness_dbfs"] - 15


def test_a_published_language_takes_precedence_in_lineage(tmp_path: Path) -> None:
    state = JobState(tmp_path / "out")
    state.work.mkdir(parents=True)
    table = candidates(["http://web/0", "http://web/1"])
    lineage = [json.dumps({}), json.dumps({"language": "zh-Latn"})]
    table = table.set_column(table.column_names.index("lineage"), "lineage", pa.array(lineage))
    table = table.append_column("language", pa.array(["en", "zh"]))
    table = table.append_column("score.language_confidence", pa.array([0.5, None], pa.float32()))
    DownloadWorker(spec(state.output)).process(0, table)
    first, second = staged(state, 0)
    assert (first.lineage["language"], first.scores["language_confidence"]) == ("en", 0.5)
    assert second.lineage["language"] == "zh-Latn"
    assert "language_confidence" not in second.scores


def test_faces_are_blurred_by_their_rows_boxes(tmp_path: Path) -> None:
    state = JobState(tmp_path / "out")
    state.work.mkdir(parents=True)
    table = candidates(["http://web/0", "http://web/1"])
    boxes = pa.array([[[0.2, 0.2, 0.5, 0.5]], []], BOXES)
    DownloadWorker(spec(state.output)).process(0, table.append_column("boxes", boxes))
    first, second = staged(state, 0)
    assert first.lineage["changed"] == "faces blurred"
    assert first.media[0].data != PICTURES[0]
    assert second.media[0].data == PICTURES[1]
