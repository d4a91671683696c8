"""Shards leave for webdataset, datasets and files, and come back as the same samples."""

import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
import webdataset

import etl.instruct
import etl.pairs
from etl.cli import UserError
from etl.digits import records, subjects
from etl.export import Options, export, run
from etl.storage.schema import Sample, Turn
from etl.storage.shards import ShardSet, write_folder

FORMATS = ("webdataset", "parquet", "folder")
KINDS = ("image", "video", "audio", "points")


def caption(kind: str, number: int) -> Sample:
    if kind == "image":
        return records.pair_sample(0, number)
    return subjects.sample(kind, "captions", 0, number)


def shards(folder: Path, samples: Sequence[Sample]) -> Path:
    return write_folder(folder, samples, job="test", rows_per_shard=2)


def exported(folder: Path, samples: Sequence[Sample], to: str) -> Path:
    source = shards(folder / "shards", samples)
    export(Options(input=source, output=folder / to, to=to, rows_per_file=2))  # type: ignore[arg-type]
    return folder / to


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def content(sample: Sample) -> tuple:
    return sample.turns, [(medium.kind, medium.data) for medium in sample.media]


@pytest.mark.parametrize(("to", "kind"), [*((to, "image") for to in FORMATS), ("folder", "video")])
def test_pairs_come_back_as_the_same_samples(tmp_path: Path, to: str, kind: str) -> None:
    samples = [caption(kind, number) for number in range(3)]
    tagged = Turn(role="assistant", text=r"the tag \<image> is text")
    samples[1] = Sample(**{**vars(samples[1]), "turns": (samples[1].turns[0], tagged)})
    source = exported(tmp_path, samples, to)
    etl.pairs.run(["--input", str(source), "--output", str(tmp_path / "back"), "--workers", "1"])
    back = ShardSet([tmp_path / "back"])
    assert [content(sample) for sample in back] == [content(sample) for sample in samples]
    assert back[0].lineage["id"] == samples[0].id


@pytest.mark.parametrize("kind", KINDS)
def test_webdataset_reads_archives(tmp_path: Path, kind: str) -> None:
    samples = [caption(kind, number) for number in range(3)]
    folder = exported(tmp_path, samples, "webdataset")
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [one["__key__"] for one in found] == ["000000000", "000000001", "000000002"]
    for one, sample in zip(found, samples, strict=True):
        facts = json.loads(one["json"])
        assert one["txt"].decode() == sample.turns[1].text
        assert (facts["id"], facts["lineage"]) == (sample.id, dict(sample.lineage))
        assert sample.media[0].data in one.values()


def test_datasets_decodes_parquet_and_folders_of_images(tmp_path: Path) -> None:
    samples = [caption("image", number) for number in range(3)]
    parquet = exported(tmp_path, samples, "parquet")
    files = [str(path) for path in sorted(parquet.glob("*.parquet"))]
    cache = str(tmp_path / "cache")
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert isinstance(found.features["image"], datasets.Image)
    export(Options(input=tmp_path / "shards", output=tmp_path / "files", to="folder"))
    folder = str(tmp_path / "files")
    listed = datasets.load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=cache)
    for rows in (found, listed):
        assert rows["text"] == [sample.turns[1].text for sample in samples]
        for row, sample in zip(rows, samples, strict=True):
            assert row["image"].size == (sample.media[0].width, sample.media[0].height)


def test_datasets_has_the_features_of_media_in_lists(tmp_path: Path) -> None:
    samples = [subjects.sample("image_audio", "dialogues", 0, number) for number in range(2)]
    parquet = exported(tmp_path, samples, "parquet")
    found = datasets.Dataset.from_parquet(
        str(parquet / "00000.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert found.features["images"] == datasets.List(datasets.Image())
    assert found.features["audios"] == datasets.List(datasets.Audio())
    raw = found.cast_column("audios", datasets.List(datasets.Audio(decode=False)))
    for row, sample in zip(raw, samples, strict=True):
        image, audio = sample.media
        assert row["messages"][0]["content"] == sample.turns[0].text
        assert row["audios"][0]["bytes"] == audio.data
        assert row["images"][0].size == (image.width, image.height)


@pytest.mark.parametrize("to", FORMATS)
def test_dialogues_come_back_as_the_same_samples(tmp_path: Path, to: str) -> None:
    samples = [subjects.sample("image_audio", "dialogues", 0, number) for number in range(2)]
    rejected = (Turn(role="assistant", text="a worse answer"),)
    feedback = (Turn(role="user", text="that is wrong"),)
    judged = {"rejected": rejected, "feedback": feedback, "lineage": {"file": "a/1.jpg"}}
    samples.append(Sample(**{**vars(caption("image", 0)), **judged}))
    source = exported(tmp_path, samples, to)
    args = ["--input", str(source), "--output", str(tmp_path / "back"), "--workers", "1"]
    etl.instruct.run([*args, *(["--media", str(source)] if to == "folder" else [])])
    back = ShardSet([tmp_path / "back"])
    assert [content(sample) for sample in back] == [content(sample) for sample in samples]
    assert (back[2].rejected, back[2].feedback) == (rejected, feedback)
    assert back[0].lineage["original_id"] == samples[0].id


@pytest.mark.parametrize("to", FORMATS)
def test_a_killed_export_goes_on(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [caption("image", number) for number in range(5)]
    whole = exported(tmp_path, samples, to)
    read = ShardSet.__getitem__

    def stop_at_three(self: ShardSet, index: int) -> Sample:
        if index == 3:
            raise KeyboardInterrupt
        return read(self, index)

    options = Options(
        input=tmp_path / "shards",
        output=tmp_path / "again",
        to=to,
        rows_per_file=2,  # type: ignore[arg-type]
    )
    monkeypatch.setattr(ShardSet, "__getitem__", stop_at_three)
    with pytest.raises(KeyboardInterrupt):
        export(options)
    assert json.loads((tmp_path / "again" / "export.state").read_text())["rows"] is None
    monkeypatch.undo()
    assert export(options)["rows"] == 5

    def files(folder: Path) -> dict[str, bytes]:
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    assert files(tmp_path / "again") == files(whole)


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    source = shards(tmp_path / "shards", [caption("image", 0)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="want an empty folder"):
        run(["--input", str(source), "--output", str(tmp_path / "full"), "--to", "parquet"])
    run(["--input", str(source), "--output", str(tmp_path / "out"), "--to", "parquet"])
    with pytest.raises(UserError, match="holds another export"):
        run(["--input", str(source), "--output", str(tmp_path / "out"), "--to", "folder"])
