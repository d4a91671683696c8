"""Every format reads a small file in `tests/etl/formats/` as `expected.json` says.

The formats are those that the modules of `etl.sources` list in `FORMATS`; nothing is registered
here. To add one, put a sample file into `tests/etl/formats/` and its records into `expected.json`;
`python -m tests.etl.sources.test_formats FORMAT FILE` prints them.
"""

import importlib
import json
import pkgutil
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import etl.sources
from etl.cli import UserError
from etl.runtime.corpus import peek
from etl.sources import sounds, vqa
from etl.sources.base import Format, RecordReader
from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS

FILES = Path(__file__).parents[1] / "formats"
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))


def source_modules() -> list[ModuleType]:
    """The modules of `etl.sources` that list formats."""
    names = [f"etl.sources.{module.name}" for module in pkgutil.iter_modules(etl.sources.__path__)]
    return [one for one in map(importlib.import_module, names) if hasattr(one, "FORMATS")]


SOURCES = source_modules()
FORMATS: dict[str, Format] = {
    name: fmt for source in SOURCES for name, fmt in source.FORMATS.items()
}


def rows(path: Path, name: str, at_once: int = 100) -> list[dict]:
    return pa.concat_tables(RecordReader(name, path, FORMATS[name]).read(at_once)).to_pylist()


def record(row: dict) -> dict:
    """A candidate in the form of `expected.json`."""
    kept = {
        "turns": [[turn["role"], turn["text"]] for turn in row["turns"]],
        "media": [[ref["kind"], ref["url"]] for ref in row["media"]],
    }
    for name in ("rejected", "feedback"):
        if row[name]:
            kept[name] = [[turn["role"], turn["text"]] for turn in row[name]]
    scores = {
        name.removeprefix("score."): value
        for name, value in row.items()
        if name.startswith("score.") and value is not None
    }
    more = {
        "lineage": json.loads(row["lineage"]),
        "scores": scores,
        "parse_error": row["parse_error"],
    }
    return {**kept, **{name: value for name, value in more.items() if value}}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_file_is_read(name: str) -> None:
    expected = EXPECTED[name]
    found = rows(FILES / name, expected["format"])
    assert [record(row) for row in found] == expected["records"]
    assert sorted(row["row"] for row in found) == list(range(len(found)))
    assert len({row["id"] for row in found}) == len(found)
    for row in found:
        text = "".join(turn["text"] for turn in row["turns"])
        assert PLACEHOLDER_PATTERN.findall(text) == [PLACEHOLDERS[m["kind"]] for m in row["media"]]


def test_format_names_are_unique() -> None:
    assert len(FORMATS) == sum(len(source.FORMATS) for source in SOURCES)


def test_every_format_has_a_sample_file() -> None:
    assert {expected["format"] for expected in EXPECTED.values()} == set(FORMATS)
    assert {path.name for path in FILES.iterdir()} == {*EXPECTED, "expected.json"}


@pytest.mark.parametrize("name", [name for name in EXPECTED if "." in name])
def test_ids_do_not_depend_on_the_batch_size(name: str) -> None:
    fmt = EXPECTED[name]["format"]
    assert [r["id"] for r in rows(FILES / name, fmt, 1)] == [
        r["id"] for r in rows(FILES / name, fmt)
    ]


@pytest.mark.parametrize("source", [one for one in SOURCES if hasattr(one, "detect_format")])
def test_formats_are_detected(source: ModuleType) -> None:
    for name, expected in EXPECTED.items():
        if expected["format"] in source.FORMATS and "." in name:
            assert source.detect_format(peek(FILES / name)) == expected["format"], name


def test_dialogues_with_the_same_image_are_grouped() -> None:
    found = rows(FILES / "llava.json", "llava")
    assert [row["row"] for row in found] == [0, 2, 1, 3]
    assert found[0]["media"] == found[1]["media"]
    # A table never splits a group, so that one work unit has all of it.
    tables = list(RecordReader("llava", FILES / "llava.json", FORMATS["llava"]).read(1))
    assert [table.num_rows for table in tables] == [2, 1, 1]


def test_swapped_columns_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"record 0: want a URL instead of 'a very typical"):
        rows(FILES / "cc3m.tsv", "cc12m")
    with pytest.raises(UserError, match="record 0: want a URL instead of 'Metal"):
        rows(FILES / "cc12m.tsv", "cc3m")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sbu", '{"image_urls": ["a"], "captions": []}', "1 image_urls, but 0 captions"),
        ("sbu", "[]", "want an object with the lists image_urls and captions"),
        ("coco", '{"images": []}', "want an object with images and annotations"),
        ("msr-vtt", '{"videos": []}', "want an object with videos and sentences"),
        ("wavcaps", '{"data": []}', "want a list of records in 'data'"),
        ("svit", '[{"image_id": 1, "conversation": []}]', "did you mean 'conversation'"),
        ("llava-rlhf", '[{"output_1": {"value": "a"}}]', "no field 'output_2'"),
        ("mimic-it", '{"data": {}}', "want an object with the instructions in 'data'"),
        ("vqa", '{"questions": [], "data_subtype": "train2014"}', "no annotations of 'train2014'"),
        ("gqa", "[]", "want an object of questions by their ids"),
    ],
)
def test_files_of_another_format_are_reported(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        rows(path, name)
    assert str(path) in str(caught.value)


def test_missing_columns_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("videoid,url\n1,http://example.com/1.mp4\n")
    with pytest.raises(UserError, match="no column contentUrl among videoid, url"):
        rows(path, "webvid")


def test_questions_are_put_into_the_surveys_templates() -> None:
    short, brief = vqa.TEMPLATES
    found = {
        turn["text"]
        for name in ("vqa", "gqa.json")
        for row in rows(FILES / name, EXPECTED[name]["format"])
        for turn in row["turns"][::2]
    }
    assert short.replace("{question}", "Is the sky dark?") in found
    question = "What position is this man playing?"
    assert brief.replace("{question}.", question) in found


def test_a_question_without_a_question_mark_keeps_the_templates_full_stop() -> None:
    (record,) = vqa.vqa_dialogue("a.jpg", [("Name the colour of the largest bar.", "red")])
    assert record.turns[0].text.endswith("bar. Answer:")


def test_segments_of_recordings_start_at_the_listed_time() -> None:
    fmt = sounds.formats("{youtube_id}.flac", cut=True, local=True)["audiocaps"]
    (table,) = RecordReader("audiocaps", FILES / "audiocaps.csv", fmt).read(10)
    (first,) = table["media"][0].as_py()
    assert first == {
        "kind": "audio",
        "url": "r1nicOVtvkQ.flac",
        "start": 130.0,
        "length": sounds.CLIP_SECONDS,
    }
    fmt = sounds.formats("{videoid}.flac", cut=False, local=True)["audiocaps"]
    with pytest.raises(UserError, match="names no columns of audiocap_id, youtube_id"):
        list(RecordReader("audiocaps", FILES / "audiocaps.csv", fmt).read(10))


def test_wavcaps_may_name_local_files() -> None:
    fmt = sounds.formats("", cut=False, local=True)["wavcaps"]
    (table,) = RecordReader("wavcaps", FILES / "wavcaps.json", fmt).read(10)
    assert table["url"].to_pylist() == ["180913.flac", "Yb0RFKhbpFJA.flac"]


def test_images_in_parquet_are_named_by_their_cells(tmp_path: Path) -> None:
    column = pa.array(
        [{"bytes": b"\xff\xd8picture", "path": "a.jpg"}],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    text = json.dumps({"question": "What is it?", "chosen": "A bus.", "rejected": "A car."})
    pq.write_table(pa.table({"image": column, "text": [text]}), tmp_path / "part.parquet")
    (row,) = rows(tmp_path, "rlhf-v")
    assert row["media"][0]["url"] == "input:part.parquet#0/image"
    assert row["url"] == "part.parquet#0/image"  # as a report shows it


def test_documents_in_parquet_are_read_like_json(tmp_path: Path) -> None:
    document = json.loads((FILES / "obelics.jsonl").read_text())
    pq.write_table(pa.Table.from_pylist([document]), tmp_path / "part.parquet")
    assert [record(row) for row in rows(tmp_path, "obelics")] == EXPECTED["obelics.jsonl"][
        "records"
    ]


def test_the_two_files_of_vqa_may_be_in_a_folder_with_others(tmp_path: Path) -> None:
    shutil.copytree(FILES / "vqa", tmp_path / "all")
    val = (FILES / "vqa" / "v2_mscoco_train2014_annotations.json").read_text()
    (tmp_path / "all" / "val.json").write_text(val.replace("train2014", "val2014"))
    assert len(rows(tmp_path / "all", "vqa")) == 2


if __name__ == "__main__":
    name, file = sys.argv[1:]
    found = {"format": name, "records": [record(row) for row in rows(FILES / file, name)]}
    sys.stdout.write(json.dumps({file: found}, indent=1, ensure_ascii=False) + "\n")
