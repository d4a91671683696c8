import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.cli import UserError
from etl.sources.base import CANDIDATES, RecordReader
from etl.sources.dialogues import LLAVA
from etl.sources.parquet import Laion


def laion_list(path: Path, **columns: object) -> Path:
    base = {
        "URL": [f"http://example.com/{number}.jpg" for number in range(5)],
        "TEXT": [f"caption {number}" for number in range(4)] + [None],
        "HEIGHT": [100, 200, 300, 400, 500],
        "WIDTH": [10.0, 20.0, None, 40.0, 50.0],
        "similarity": [0.1, 0.2, float("nan"), 0.4, 0.5],
        "punsafe": pa.array([0.0, 0.1, 0.2, 0.3, 0.4], pa.float32()),
        "pwatermark": [0, 1, 0, 1, 0],
    }
    pq.write_table(pa.table({**base, **columns}), path)
    return path


def test_laion_rows_become_candidates(tmp_path: Path) -> None:
    source = Laion(laion_list(tmp_path / "list.parquet"))
    tables = list(source.read(2))
    assert [table.num_rows for table in tables] == [2, 2, 1]
    whole = pa.concat_tables(tables)
    assert whole.select(CANDIDATES.names).schema == CANDIDATES
    assert whole["row"].to_pylist() == [0, 1, 2, 3, 4]
    assert whole["turns"][1].as_py() == [
        {"role": "user", "text": "<image>"},
        {"role": "assistant", "text": "caption 1"},
    ]
    assert whole["declared_width"].to_pylist() == [10, 20, None, 40, 50]
    assert whole["score.similarity"].is_null().to_pylist() == [False, False, True, False, False]
    assert source.missing == []


def test_ids_depend_on_content_not_on_position(tmp_path: Path) -> None:
    first = pa.concat_tables(Laion(laion_list(tmp_path / "a.parquet")).read(5))
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.take([4, 3, 2, 1, 0]), tmp_path / "b.parquet")
    second = pa.concat_tables(Laion(tmp_path / "b.parquet").read(3))
    assert first["id"].to_pylist() == second["id"].to_pylist()[::-1]
    assert len(set(first["id"].to_pylist())) == 5


def test_mirrors_differ_in_case_and_leave_columns_out(tmp_path: Path) -> None:
    table = pa.table({"url": ["http://example.com/1"], "Text": ["one"], "width": ["640"]})
    pq.write_table(table, tmp_path / "mirror.parquet")
    source = Laion(tmp_path / "mirror.parquet")
    (found,) = source.read(10)
    assert found["declared_width"].to_pylist() == [640]
    assert found["score.punsafe"].to_pylist() == [None]
    assert source.missing == ["HEIGHT", "similarity", "punsafe", "pwatermark"]


def test_a_folder_of_parts_is_one_list(tmp_path: Path) -> None:
    for number in (1, 0):
        table = pa.table({"URL": [f"http://example.com/{number}"], "TEXT": ["text"]})
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    (found,) = Laion(tmp_path).read(10)
    assert found["url"].to_pylist() == ["http://example.com/0", "http://example.com/1"]


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def write_rows(path: Path, columns: dict) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "no such file or folder"),
        (lambda path: write_text(path, ""), "the file is empty"),
        (lambda path: write_text(path, "PAR1 but no more"), "not a parquet file"),
        (lambda path: path.mkdir() or path, r"holds no \.parquet file"),
        (
            lambda path: write_rows(path, {"URL": ["a"], "TXT": ["b"]}),
            r"no column TEXT among URL, TXT; did you mean 'TXT'\?",
        ),
        (lambda path: write_rows(path, {"URL": [], "TEXT": []}), "the list has no rows"),
    ],
)
def test_bad_laion_lists_are_reported(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Laion(make(tmp_path / "list.parquet"))


def test_texts_instead_of_numbers_are_reported(tmp_path: Path) -> None:
    source = Laion(laion_list(tmp_path / "list.parquet", WIDTH=["wide"] * 5))
    with pytest.raises(UserError, match="column WIDTH holds string, want numbers"):
        list(source.read(5))


def test_a_damaged_page_is_reported(tmp_path: Path) -> None:
    path = laion_list(tmp_path / "list.parquet")
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    source = Laion(path)
    with pytest.raises(UserError, match="damaged parquet"):
        list(source.read(5))


def record(number: int, **changes: object) -> dict:
    base = {
        "id": f"dialogue-{number}",
        "image": f"http://example.com/{number}.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": f"answer {number}"},
        ],
    }
    return {**base, **changes}


def instruct_list(path: Path, *records: object) -> Path:
    path.write_text(json.dumps(records))
    return path


def test_dialogues_become_candidates(tmp_path: Path) -> None:
    records = [record(0), record(1, kind="sum"), record(2, image=None)]
    source = RecordReader("instruct", instruct_list(tmp_path / "list.json", *records), LLAVA)
    first, second = source.read(2)
    assert first.schema == second.schema
    assert first.select(CANDIDATES.names).schema == CANDIDATES
    assert first["turns"][0].as_py()[0] == {"role": "user", "text": "<image>\nWhat?"}
    assert json.loads(first["lineage"][1].as_py()) == {
        "kind": "sum",
        "original_id": "dialogue-1",
    }
    assert second["row"].to_pylist() == [2]
    assert second["url"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "want a list of records"),
        ('{"id": 1}', "want a list of records"),
        ("[1]", "record 0: want an object"),
        (
            '[{"id": 1, "conversatoins": []}]',
            "record 0: no field 'conversations' .* did you mean 'conversatoins'",
        ),
        (
            '[{"conversations": [{"from": "he", "value": "x"}]}]',
            "record 0: want turns of {from, value}",
        ),
        ('[{"conversations": [{"from": "gpt", "value": 5}]}]', "record 0: a turn's text is 5"),
        ('[{"conversations": 5}]', "record 0: want a list of turns"),
    ],
)
def test_bad_dialogues_are_reported(tmp_path: Path, text: str, message: str) -> None:
    path = write_text(tmp_path / "list.json", text)
    with pytest.raises(UserError, match=message):
        list(RecordReader("instruct", path, LLAVA).read(10))


def test_an_escaped_placeholder_is_a_text_s_own() -> None:
    texts = [r"What does \<Image> mean next to <Image>?", r"\<image> is a tag."]
    turns = [
        {"from": who, "value": text} for who, text in zip(("human", "gpt"), texts, strict=True)
    ]
    (found,) = LLAVA.parse({"image": "a.jpg", "conversations": turns})
    assert [turn.text for turn in found.turns] == [
        r"What does \<Image> mean next to <image>?",
        r"\<image> is a tag.",
    ]
    assert [medium.url for medium in found.media] == ["a.jpg"]
    (text,) = LLAVA.parse({"conversations": [turns[1] | {"from": "human"}, turns[1]]})
    assert not text.media
