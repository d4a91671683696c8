"""`etl/instruct.py`, `etl/preference.py` and `etl/interleaved.py` on lists as people have them."""

import io
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import etl.export
import etl.instruct
import etl.interleaved
import etl.preference
from etl.cli import UserError
from etl.storage.manifest import read_manifest
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SAY = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def png(colour: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (200, 200), (colour, 90, 30)).save(data, "PNG")
    return data.getvalue()


def run(job, folder: Path, *args: str) -> tuple[list[Sample], dict[str, int]]:
    output = folder / "out"
    job.run(["--input", str(folder / "in"), "--output", str(output), "--workers", "1", *args])
    shards = ShardSet([output])
    samples = [shards[number] for number in range(len(shards))]
    return samples, dict(read_manifest(output).drops)


def write(folder: Path, table: pa.Table) -> None:
    (folder / "in").mkdir()
    pq.write_table(table, folder / "in" / "train-0.parquet", row_group_size=2)


JUDGED_ANSWERS = (("7", True), ("8", False))


def say(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_dialogues_of_hugging_face_s_parquet(tmp_path: Path) -> None:
    rows = [
        {"images": [{"bytes": png(1), "path": "a.png"}], "messages": say("<image>What?", "Red.")},
        {"images": [], "messages": say("Name a prime.", "7")},
        {
            "images": [{"bytes": png(n), "path": None} for n in (2, 3)],
            "messages": say("Both?", "No."),
        },
        {"images": [{"bytes": png(4), "path": None}], "messages": say("<image><image>?", "No.")},
        {"images": [{"bytes": png(5), "path": None}], "messages": say("<image>?", "")},
    ]
    schema = pa.schema([("images", pa.list_(IMAGE)), ("messages", SAY)])
    write(tmp_path, pa.Table.from_pylist(rows, schema=schema))
    samples, drops = run(etl.instruct, tmp_path)
    assert [[medium.data for medium in sample.media] for sample in samples] == [
        [png(1)],
        [],
        [png(2), png(3)],
    ]
    assert samples[2].turns[0].text == "<image>\n<image>\nBoth?"
    assert drops == {"placeholder_mismatch": 1, "no_answer": 1}
    table = pq.read_table(tmp_path / "out" / "drops.parquet").to_pylist()
    details = {row["reason"]: row["detail"] for row in table}
    assert details["placeholder_mismatch"] == "2 <image> in its texts for 1 of its media (image)"


def test_parts_of_turns_as_datasets_saves_them(tmp_path: Path) -> None:
    part = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    turn = {"role": datasets.Value("string"), "content": [part]}
    features = datasets.Features({"images": [datasets.Image()], "messages": [turn]})
    question = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    answer = [{"type": "text", "text": "Red."}]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    picture = Image.open(io.BytesIO(png(1)))
    rows = {"images": [[picture]], "messages": [turns]}
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)})
    saved.save_to_disk(str(tmp_path / "in"))
    (sample,), _ = run(etl.instruct, tmp_path)
    assert [turn.text for turn in sample.turns] == ["<image>\nWhat?", "Red."]
    assert sample.media[0].mime == "image/png"


def test_preferences_of_hugging_face_s_parquet(tmp_path: Path) -> None:
    rows = [
        {
            "image": {"bytes": png(1), "path": None},
            "prompt": say("What?", "")[:1],
            "chosen": say("", "Red.")[1:],
            "rejected": say("", wrong)[1:],
            "feedback": f"It is not {wrong}",
        }
        for wrong in ("Blue.", "Green.", "Blue.")
    ]
    fields = [("image", IMAGE), ("prompt", SAY), ("chosen", SAY), ("rejected", SAY)]
    fields.append(("feedback", pa.string()))
    write(tmp_path, pa.Table.from_pylist(rows, schema=pa.schema(fields)))
    samples, drops = run(etl.preference, tmp_path)
    for sample, wrong in zip(samples, ("Blue.", "Green."), strict=True):
        assert [turn.text for turn in sample.turns] == ["<image>\nWhat?", "Red."]
        assert [turn.text for turn in sample.rejected] == [wrong]
        assert sample.media[0].data == png(1)
    assert drops == {"duplicate_record": 1}  # the same answers about the same bytes
    again = tmp_path / "again"
    etl.export.run(
        ["--input", str(tmp_path / "out"), "--output", str(again / "in"), "--to", "parquet"]
    )
    exported, _ = run(etl.preference, again)
    for before, after in zip(samples, exported, strict=True):
        for name in ("turns", "rejected", "feedback", "media"):
            assert getattr(before, name) == getattr(after, name)
        assert after.feedback
        assert after.lineage["original_id"] == before.id


THUMBS = (
    [{"prompt": "Name a prime.", "completion": text, "label": up} for text, up in JUDGED_ANSWERS],
    [
        {"messages": say("Name a prime.", text), "kto_tag": up, "system": "Be brief."}
        for text, up in JUDGED_ANSWERS
    ],
)
"""TRL's unpaired preferences (docs: dataset_formats) and LLaMA-Factory's KTO (data/README.md)."""


@pytest.mark.parametrize("rows", THUMBS, ids=["trl", "llama-factory"])
def test_thumbs_up_and_down(rows: list[dict[str, object]], tmp_path: Path) -> None:
    """A thumb down is a rejected answer alone; `instruct` drops it; export keeps it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "thumbs.json").write_text(json.dumps(rows))
    samples, drops = run(etl.preference, tmp_path)
    assert not drops
    assert [sample.turns[-1].text for sample in samples] == ["7", "Name a prime."]
    assert [[turn.text for turn in sample.rejected] for sample in samples] == [[], ["8"]]
    again = tmp_path / "again"
    words = ["--input", str(tmp_path / "out"), "--output", str(again / "in"), "--to", "parquet"]
    etl.export.run(words)
    exported, _ = run(etl.preference, again)
    for before, after in zip(samples, exported, strict=True):
        assert (before.turns, before.rejected) == (after.turns, after.rejected)
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "in").rename(other / "in")
    (sample,), drops = run(etl.instruct, other)
    assert sample.turns[-1].text == "7"
    assert drops == {"bad_record": 1}


def test_documents_of_hugging_face_s_parquet(tmp_path: Path) -> None:
    images = [None, {"bytes": png(1), "path": "a.png"}, None]
    rows = [{"images": images, "texts": ["A title.", None, "The end."]}]
    schema = pa.schema([("images", pa.list_(IMAGE)), ("texts", pa.list_(pa.string()))])
    write(tmp_path, pa.Table.from_pylist(rows, schema=schema))
    (sample,), _ = run(etl.interleaved, tmp_path)
    assert sample.turns[0].text == "A title.\n<image>\nThe end."
    assert sample.media[0].data == png(1)


def test_fields_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.png").write_bytes(png(1))
    record = {"dialog": say("What?", "Red."), "frame": "a.png", "preview": "small.png"}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "list.json").write_text(json.dumps([record]))
    with pytest.raises(UserError, match=r"unknown format: .* nearest is --format"):
        run(etl.instruct, tmp_path)
    args = ["--media", str(tmp_path / "media"), "--columns", "messages=dialog", "image=frame"]
    with pytest.raises(UserError, match="record 0: its field 'preview' holds media"):
        run(etl.instruct, tmp_path, *args)
    (sample,), _ = run(etl.instruct, tmp_path, *args, "lineage=preview")
    assert sample.media[0].data == png(1)
    assert sample.lineage["preview"] == "small.png"
    with pytest.raises(UserError, match=r"--columns imgae=frame: .*; did you mean image"):
        run(etl.instruct, tmp_path, "--format", "messages", "--columns", "imgae=frame")
