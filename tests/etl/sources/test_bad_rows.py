"""One bad row, whatever is wrong with it, is one row that is dropped with a reason."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import etl.laion
from etl.cli import UserError
from etl.sources import captions, conceptual, dialogues, sounds, videos
from etl.sources.base import BadRecordError, Format, Record, RecordReader, check_record, pair
from etl.sources.parquet import Laion
from etl.storage.manifest import read_manifest
from etl.storage.schema import Turn


def read(path: Path, fmt: Format) -> tuple[list[str], list[str]]:
    """The captions (or first texts) of the valid rows, and the errors of the others, in order."""
    rows = pa.concat_tables(RecordReader("test", path, fmt).read(2)).to_pylist()
    assert sorted(row["row"] for row in rows) == list(range(len(rows)))
    texts = [row["caption"] or row["turns"][0]["text"] for row in rows if not row["parse_error"]]
    return texts, [row["parse_error"] for row in rows if row["parse_error"]]


def written(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_coco_s_incomplete_entries(tmp_path: Path) -> None:
    document = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2}, {"file_name": "3.jpg"}, None],
        "annotations": [
            None,
            {"image_id": 1, "id": 1, "caption": "right"},
            {"image_id": 2, "id": 2, "caption": "an image without a name"},
            {"image_id": 3, "id": 3, "caption": "an image without an id"},
            {"image_id": 1, "caption": None},
            {"image_id": 1, "id": 6, "caption": "right, too"},
            7,
        ],
    }
    texts, errors = read(written(tmp_path / "coco.json", document), captions.COCO)
    assert texts == ["right", "right, too"]
    assert errors == [
        "want an object with 'caption'",
        "no field 'file_name' among ['id']",
        "no image has the id 3",
        "caption is None, want str",
        "want an object with 'caption'",
    ]


def test_msr_vtt_s_incomplete_entries(tmp_path: Path) -> None:
    sentences = [None, {"caption": "right", "video_id": "video0"}, {"caption": "no video"}]
    document = {"videos": [{"video_id": "video0"}, {}, None], "sentences": sentences}
    texts, errors = read(written(tmp_path / "list.json", document), videos.MSR_VTT)
    assert texts == ["right"]
    assert len(errors) == 2


SURROGATE = r"""[{"image": "1.jpg", "conversations": [{"from": "gpt", "value": "half \ud83d"}]},
{"image": "2.jpg", "conversations": [{"from": "gpt", "value": "whole \ud83d\ude00"}]},
{"image": "3.jpg", "kind": "\udfff", "conversations": [{"from": "gpt", "value": "in lineage"}]},
{"image": "4\udfff.jpg", "conversations": [{"from": "gpt", "value": "in a name"}]},
{"image": "5.jpg", "conversations": [{"from": "gpt\ud800", "value": "in a role"}]}]"""


def test_half_a_surrogate_pair_spoils_its_record_only(tmp_path: Path) -> None:
    path = written(tmp_path / "list.json", SURROGATE.encode())
    texts, errors = read(path, dialogues.LLAVA)
    assert texts == ["whole \U0001f600"]
    assert len(errors) == 4
    assert errors[0] == "not valid Unicode: 'half \\ud83d' (surrogates not allowed)"
    errors[3].encode()  # so that Arrow can hold it


@pytest.mark.parametrize(
    ("name", "content", "fmt"),
    [
        ("a.tsv", b"one\thttp://x.y/1\n\xff\thttp://x.y/2\nthree\thttp://x.y/3", conceptual.CC3M),
        ("a.csv", b"url,caption\nh://a/,one\nh://b/,\xe4\nh://c/,three", conceptual.WUKONG),
        ("a.txt", b"BAC001W1 one\nBAC002W1 \xc3\nBAC003W1 three", sounds.AISHELL),
        ("a.jsonl", b'{"instruction":"one","output":""}\n{"instruction":"\xff","output":""}\n'
         b'{"instruction":"three","output":""}\n', dialogues.ALPACA),
        ("a.json", b'[{"instruction":"one","output":""},{"instruction":"\xff","output":""},'
         b'{"instruction":"three","output":""}]', dialogues.ALPACA),
        ("a.jsonl", b'{"instruction":"one","output":""}\n{"instruction":"tw\n'
         b'{"instruction":"three","output":""}\n', dialogues.ALPACA),
        ("a.jsonl", b'{"instruction":"one","output":""}\n' + b"[" * 100_000 + b"\n"
         b'{"instruction":"three","output":""}\n', dialogues.ALPACA),
    ],
)  # fmt: skip
def test_a_row_of_invalid_bytes_or_json(
    tmp_path: Path, name: str, content: bytes, fmt: Format
) -> None:
    texts, errors = read(written(tmp_path / name, content), fmt)
    assert texts == ["one", "three"]
    assert len(errors) == 1


def test_rows_with_too_many_or_too_long_values(tmp_path: Path) -> None:
    rows = [b"url,caption", b"http://x/1,one", b"http://x/2,two, with a comma", b"http://x/3,,,"]
    rows.append(b"http://x/4," + b"x" * 200_000)
    texts, errors = read(written(tmp_path / "a.csv", b"\n".join(rows)), conceptual.WUKONG)
    assert [len(text) for text in texts] == [3, 7, 200_000]  # an empty caption is its placeholder
    assert errors == ["3 values in 2 columns: ' with a comma' …"]


def test_what_a_parser_raises_is_its_row_s_reason(tmp_path: Path) -> None:
    def parse(row: Any) -> list[Record]:
        return [pair("image", f"{10 // row}.jpg", "text")]

    fmt = Format(suffixes=(".json",), rows=lambda _: [0, "1", 1, None, 2], parse=parse)
    texts, errors = read(written(tmp_path / "list.json", []), fmt)
    assert texts == ["text", "text"]
    assert errors[0] == "ZeroDivisionError: integer division or modulo by zero"
    assert [error.partition(":")[0] for error in errors[1:]] == ["TypeError", "TypeError"]


def test_a_document_of_another_shape_is_an_error_of_the_whole_file(tmp_path: Path) -> None:
    def rows(_: Path) -> list[int]:
        return [len(entry) for entry in 5]  # type: ignore[attr-defined]

    fmt = Format(suffixes=(".json",), rows=rows, parse=lambda _: [])
    with pytest.raises(UserError, match=r"list.json: not of this format \(TypeError: 'int' object"):
        read(written(tmp_path / "list.json", 5), fmt)


def test_a_wrong_format_is_an_error_of_the_whole_file(tmp_path: Path) -> None:
    bad, good = [{"q": 1}], [{"instruction": "one", "output": ""}]
    for count in (1, 99, 100, 101):
        with pytest.raises(UserError, match=r"list.json: record 0: no field 'question' or"):
            read(written(tmp_path / "list.json", bad * count), dialogues.ALPACA)
    texts, errors = read(written(tmp_path / "list.json", bad * 99 + good), dialogues.ALPACA)
    assert (len(texts), len(errors)) == (1, 99)
    folder = tmp_path / "parts"
    folder.mkdir()
    written(folder / "1.json", good)
    written(folder / "2.json", bad)
    assert len(read(folder, dialogues.ALPACA)[1]) == 1
    written(folder / "2.json", bad * 100 + good)
    with pytest.raises(UserError, match=r"2.json: record 0"):
        read(folder, dialogues.ALPACA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": 5}, "want a text instead of 5"),
        ({"lineage": {"id": 5}}, "want a text instead of 5"),
        ({"turns": (Turn(role="bot", text="a"),)}, "role 'bot', want one of system, user"),
        ({"scores": {"rating": "high"}}, "want a number instead of 'high'"),
        ({"scores": {"rating": 10**400}}, "want a number instead of 1000"),
        ({"kind": "smell"}, "unknown kind of medium 'smell'"),
        ({"start": "soon"}, "want a number instead of 'soon'"),
    ],
)
def test_records_that_arrow_cannot_hold(changes: dict, message: str) -> None:
    record = pair("image", "a.jpg", "text")
    ref = {k: v for k, v in changes.items() if k in ("kind", "start")}
    media = (type(record.media[0])(**{**vars(record.media[0]), **ref}),)
    rest = {k: v for k, v in changes.items() if k not in ref}
    with pytest.raises(BadRecordError, match=message):
        check_record(Record(**{**vars(record), "media": media, **rest}))


def test_headers_of_img2dataset_s_recipes_are_no_rows(tmp_path: Path) -> None:
    for fmt, header, line in (
        (conceptual.CC3M, "caption\turl", "a text\thttp://x.y/1"),
        (conceptual.CC12M, "url\tcaption", "http://x.y/1\ta text"),
    ):
        path = written(tmp_path / "list.tsv", f"{header}\n{line}\n".encode())
        assert conceptual.FORMATS[conceptual.detect_format(header)] is fmt
        assert read(path, fmt) == (["a text"], [])


STRUCT = {"tokens": ["a"], "raw": "one"}


@pytest.mark.parametrize(
    ("column", "texts", "parents"),
    [
        ([["one", "two"], [], None, ["3"]], ["one", "two", None, None, "3"], [0, 0, 1, 2, 3]),
        ([STRUCT, None], ["one", None], None),
        ([[STRUCT, STRUCT], [STRUCT]], ["one"] * 3, [0, 0, 1]),
        ([{"sentences": ["one", "two"]}], ["one", "two"], [0, 0]),
        (pa.array(["one", "one"]).dictionary_encode(), ["one", "one"], None),
        (pa.array(["one"], pa.large_string()), ["one"], None),
        (pa.array(["one"], pa.string_view()), ["one"], None),
        (pa.array([["one", "two"]], pa.list_(pa.string(), 2)), ["one", "two"], [0, 0]),
    ],
)  # fmt: skip
def test_captions_in_lists_and_structs_are_rows(
    tmp_path: Path, column: Any, texts: list, parents: list[int] | None
) -> None:
    urls = [f"http://x.y/{n}" for n in range(len(column))]
    table = pa.table({"url": urls, "caption": column, "similarity": [0.1] * len(urls)})
    pq.write_table(table, tmp_path / "list.parquet")
    found = pa.concat_tables(Laion(tmp_path / "list.parquet").read(2))
    assert [turns[1]["text"] or None for turns in found["turns"].to_pylist()] == texts
    assert found["url"].to_pylist() == [urls[n] for n in parents or range(len(urls))]
    assert found["row"].to_pylist() == list(range(len(texts)))


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (["url", "text", "text"], [["a"], ["b"], ["c"]], "two columns are called 'text'"),
        (["URL", "url", "text"], [["a"], ["b"], ["c"]], "URL and url differ in case only"),
        (["url", "text"], [["a"], [{"en": "b", "de": "c"}]], "holds fields en, de: want one text"),
        (["url", "text"], [["a"], [{"n": 1}]], "holds fields : want one text"),
        (["url", "text"], [[["a"]], ["b"]], "column url holds list.*, want strings"),
    ],
)
def test_columns_that_hold_something_else(
    tmp_path: Path, names: list[str], columns: list, message: str
) -> None:
    table = pa.Table.from_arrays(list(map(pa.array, columns)), names=names)
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(UserError, match=message):
        list(Laion(tmp_path / "list.parquet").read(10))


def test_invalid_text_in_a_list_of_urls_is_one_bad_row(tmp_path: Path) -> None:
    def text(*values: bytes) -> pa.Array:
        return pa.array(values, pa.binary()).view(pa.string())

    table = pa.table(
        {
            "image_url": text(b"http://10.1.2.3/1", b"http://10.1.2.3/\xff", b"http://10.1.2.3/3"),
            "alt": text(b"a first text", b"a second text", b"a third \xfe text"),
            "license": text(b"\xff", b"a", b"b"),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    args = ["--input", str(tmp_path / "list.parquet"), "--output", str(tmp_path / "out")]
    etl.laion.run([*args, "--columns", "url=image_url", "caption=alt"])
    drops = pq.read_table(tmp_path / "out" / "drops.parquet").to_pylist()
    assert [drop["reason"] for drop in drops] == ["private_address", "bad_record", "bad_record"]
    assert "column image_url: 'utf-8' codec can't decode" in drops[1]["detail"]
    assert read_manifest(tmp_path / "out").input_rows == 3
