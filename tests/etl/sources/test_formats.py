"""A small file of every format, after the published columns, and what becomes of its rows."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import etl.cc
import etl.coco
import etl.instruct
import etl.pointcloud
import etl.preference
import etl.webvid
from etl.cli import UserError
from etl.runtime.corpus import peek
from etl.sources import captions, clouds, conceptual, documents, sounds, videos, vqa
from etl.sources.base import RecordReader
from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS

FILES = Path(__file__).parents[1] / "formats"
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))
FORMATS = {
    **etl.cc.FORMATS,
    **etl.coco.FORMATS,
    **etl.webvid.FORMATS,
    **etl.pointcloud.FORMATS,
    **etl.instruct.FORMATS,
    **etl.preference.FORMATS,
    **sounds.formats("{youtube_id}_{start_time}.wav", cut=False, local=False),
    **documents.formats(0.24),
}


def rows(path: Path, name: str, at_once: int = 100) -> list[dict]:
    return pa.concat_tables(RecordReader(name, path, FORMATS[name]).read(at_once)).to_pylist()


def told(row: dict) -> dict:
    """A candidate as `expected.json` has it."""
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
    wanted = EXPECTED[name]
    found = rows(FILES / name, wanted["format"])
    assert [told(row) for row in found] == wanted["records"]
    assert sorted(row["row"] for row in found) == list(range(len(found)))
    assert len({row["id"] for row in found}) == len(found)
    for row in found:
        text = "".join(turn["text"] for turn in row["turns"])
        assert PLACEHOLDER_PATTERN.findall(text) == [PLACEHOLDERS[m["kind"]] for m in row["media"]]


def test_every_format_has_a_file() -> None:
    assert {wanted["format"] for wanted in EXPECTED.values()} == set(FORMATS)


@pytest.mark.parametrize("name", [name for name in EXPECTED if "." in name])
def test_ids_do_not_depend_on_how_rows_are_cut(name: str) -> None:
    how = EXPECTED[name]["format"]
    assert [r["id"] for r in rows(FILES / name, how, 1)] == [
        r["id"] for r in rows(FILES / name, how)
    ]


GUESSED = {
    conceptual.detect_format: etl.cc.FORMATS,
    captions.detect_format: etl.coco.FORMATS,
    videos.detect_format: etl.webvid.FORMATS,
    clouds.detect_format: etl.pointcloud.FORMATS,
    sounds.detect_format: sounds.formats("", cut=False, local=False),
    documents.detect_format: documents.formats(0.24),
}


@pytest.mark.parametrize("detect_format", GUESSED)
def test_formats_are_told_by_their_beginning(detect_format) -> None:
    for name, wanted in EXPECTED.items():
        if wanted["format"] in GUESSED[detect_format] and "." in name:
            assert detect_format(peek(FILES / name)) == wanted["format"], name


def test_dialogues_that_share_a_picture_stand_together() -> None:
    found = rows(FILES / "llava.json", "llava")
    assert [row["row"] for row in found] == [0, 2, 1, 3]
    assert found[0]["media"] == found[1]["media"]
    # A table is not cut between them, so that one range has them all.
    tables = list(RecordReader("llava", FILES / "llava.json", FORMATS["llava"]).read(1))
    assert [table.num_rows for table in tables] == [2, 1, 1]


def test_columns_in_another_order_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"record 0: want a URL where 'a very typical"):
        rows(FILES / "cc3m.tsv", "cc12m")
    with pytest.raises(UserError, match="record 0: want a URL where 'Metal"):
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
def test_other_shapes_are_told(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        rows(path, name)
    assert str(path) in str(caught.value)


def test_tables_without_their_columns_are_told(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("videoid,url\n1,http://example.com/1.mp4\n")
    with pytest.raises(UserError, match="no column contentUrl among videoid, url"):
        rows(path, "webvid")


def test_answers_become_instructions_by_the_surveys_templates() -> None:
    short, brief = vqa.TEMPLATES
    found = {
        turn["text"]
        for name in ("vqa", "gqa.json")
        for row in rows(FILES / name, EXPECTED[name]["format"])
        for turn in row["turns"][::2]
    }
    assert short.replace("{question}", "Is the sky dark?") in found
    asked = "What position is this man playing?"
    assert brief.replace("{question}.", asked) in found


def test_a_question_without_a_mark_gets_the_templates_full_stop() -> None:
    (record,) = vqa.vqa_dialogue("a.jpg", [("Name the colour of the largest bar.", "red")])
    assert record.turns[0].text.endswith("bar. Answer:")


def test_parts_of_recordings_are_cut_where_the_list_says() -> None:
    how = sounds.formats("{youtube_id}.flac", cut=True, local=True)["audiocaps"]
    (table,) = RecordReader("audiocaps", FILES / "audiocaps.csv", how).read(10)
    (first,) = table["media"][0].as_py()
    assert first == {
        "kind": "audio",
        "url": "r1nicOVtvkQ.flac",
        "start": 130.0,
        "length": sounds.CLIP_SECONDS,
    }
    how = sounds.formats("{videoid}.flac", cut=False, local=True)["audiocaps"]
    with pytest.raises(UserError, match="names no columns of audiocap_id, youtube_id"):
        list(RecordReader("audiocaps", FILES / "audiocaps.csv", how).read(10))


def test_wavcaps_names_files_where_there_are_any() -> None:
    how = sounds.formats("", cut=False, local=True)["wavcaps"]
    (table,) = RecordReader("wavcaps", FILES / "wavcaps.json", how).read(10)
    assert table["url"].to_pylist() == ["180913.flac", "Yb0RFKhbpFJA.flac"]


def test_pictures_within_parquet_become_data_urls(tmp_path: Path) -> None:
    column = pa.array(
        [{"bytes": b"\xff\xd8picture", "path": "a.jpg"}],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    text = json.dumps({"question": "What is it?", "chosen": "A bus.", "rejected": "A car."})
    pq.write_table(pa.table({"image": column, "text": [text]}), tmp_path / "part.parquet")
    (row,) = rows(tmp_path, "rlhf-v")
    assert row["media"][0]["url"] == "data:image/jpeg;base64,/9hwaWN0dXJl"
    assert row["url"] == "data:image/jpeg;base64"  # what a report shows


def test_documents_in_parquet_are_read_as_those_in_json(tmp_path: Path) -> None:
    record = json.loads((FILES / "obelics.jsonl").read_text())
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "part.parquet")
    assert [told(row) for row in rows(tmp_path, "obelics")] == EXPECTED["obelics.jsonl"]["records"]


def test_both_files_of_vqa_may_lie_in_a_folder_with_others(tmp_path: Path) -> None:
    shutil.copytree(FILES / "vqa", tmp_path / "all")
    val = (FILES / "vqa" / "v2_mscoco_train2014_annotations.json").read_text()
    (tmp_path / "all" / "val.json").write_text(val.replace("train2014", "val2014"))
    assert len(rows(tmp_path / "all", "vqa")) == 2
