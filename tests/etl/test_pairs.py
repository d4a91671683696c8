"""Pairs as people have them: each format by its looks, with media of every kind, read in place."""

import gzip
import io
import json
import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

import etl.pairs
from etl.cli import UserError
from etl.digits import records, subjects
from etl.media.embedded import EmbeddedMedia, is_embedded
from etl.runtime.job_state import JobState
from etl.sources.base import RecordReader
from etl.sources.files import input_root
from etl.sources.pair_files import FORMATS, detect_pairs, pair_formats
from etl.sources.pairs import kind_of_column, read_columns
from etl.storage.manifest import read_manifest
from etl.storage.shards import ShardSet
from tests.etl.sources.test_formats import EXPECTED, FILES

Found = tuple[str, Any, str]
"""Kind, the bytes or the name of the medium, and the caption."""


def read(path: Path, *columns: str) -> list[Found]:
    """The pairs of an input, with the bytes of embedded media."""
    fmt = pair_formats(read_columns(columns), path)[detect_pairs(path)]
    rows = pa.concat_tables(RecordReader("pairs", path, fmt).read(3)).to_pylist()
    media = EmbeddedMedia(input_root(path), max_bytes=1 << 20)
    found = []
    for row in rows:
        if row["parse_error"]:
            found.append(("bad_record", row["parse_error"], ""))
            continue
        places = [ref["url"] for ref in row["media"]]
        data = [media.read(url).data if is_embedded(url) else url for url in places]
        kinds = " ".join(ref["kind"] for ref in row["media"])
        found.append((kinds, data[0] if len(data) == 1 else tuple(data), row["caption"]))
    return found


def write(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as writer:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
    return path


def table(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows), schema), path)
    return path


CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("name", [n for n, e in EXPECTED.items() if e["format"] in FORMATS])
def test_formats_are_found_by_their_looks(name: str) -> None:
    assert detect_pairs(FILES / name) == EXPECTED[name]["format"]


@pytest.mark.parametrize(
    "name", ["coco.json", "karpathy.json", "ai_challenger.json", "visual_genome.json"]
)
def test_coco_s_files_are_pairs_too(name: str) -> None:
    assert detect_pairs(FILES / name) == EXPECTED[name]["format"]


def test_a_folder_of_every_kind_becomes_samples(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    scene = records.pair_sample(0, 1)
    samples = {"image": scene, **{k: subjects.sample(k, "captions", 0, 1) for k in KINDS[1:]}}
    for kind, sample in samples.items():
        (medium,) = sample.media
        name = medium.mime.rpartition("/")[2].replace("x-", "").replace("jpeg", "jpg")
        write(folder, **{f"{kind}s__1_{name}": medium.data, f"{kind}s__1_txt": f"a {kind}\n"})
    write(folder, **{"images__2_jpg": b"no picture", "images__2_txt": "a text"})
    write(folder, **{"images__3_txt": "an orphan", "images__.__4_jpg": b"", "README_md": "x"})
    args = ["--input", str(folder), "--output", str(tmp_path / "out"), "--workers", "1"]
    etl.pairs.run(args)
    found = {sample.media[0].kind: sample for sample in ShardSet([tmp_path / "out"])}
    assert set(found) == set(KINDS)
    for kind, sample in samples.items():
        assert found[kind].media[0].data == sample.media[0].data
        assert found[kind].turns[1].text == f"a {kind}"
    assert found["image"].lineage["file"].startswith("images/1.")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.input_rows == manifest.rows + sum(manifest.drops.values())
    assert manifest.drops == {"wrong_type": 1, "bad_record": 2}
    (folder / "images" / "1.txt").write_text("another text")
    with pytest.raises(UserError, match="belongs to another job"):
        etl.pairs.run(args)


KINDS = ("image", "video", "audio", "points")


def test_captions_are_next_to_their_media(tmp_path: Path) -> None:
    caption = json.dumps({"caption": "by json", "id": 7})
    write(tmp_path, a_jpg=b"A", a_txt="by text", sub__b_PNG=b"B", sub__b_json=caption)
    write(tmp_path, c_wav=b"C", c_caption="by caption", d_mp4=b"D", d_json='["one", "two"]')
    write(tmp_path, **{"e.v2_jpg": b"E", "e.v2_txt": "two dots"})
    assert read(tmp_path) == [
        ("image", b"A", "by text"),
        ("audio", b"C", "by caption"),
        ("video", b"D", "one"),
        ("video", b"D", "two"),
        ("image", b"E", "two dots"),
        ("image", b"B", "by json"),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_name_the_files_of_their_folder(tmp_path: Path, kind: str) -> None:
    for split in ("train", "test"):
        rows = [{"file_name": f"{n}.jpg", "text": f"{split} {n}"} for n in range(2)]
        (tmp_path / split).mkdir()
        frame = pa.Table.from_pylist(rows).to_pandas()
        path = tmp_path / split / f"metadata.{kind}"
        if kind == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            getattr(frame, f"to_{kind}")(path, index=False)
        write(tmp_path / split, **{"0_jpg": b"0", "1_jpg": b"1"})
    assert detect_pairs(tmp_path) == "metadata"
    assert [one for _, *one in read(tmp_path)] == [
        [f"{split}/{n}.jpg", f"{split} {n}"] for split in ("test", "train") for n in range(2)
    ]


def test_archives_of_webdataset_are_read_by_key(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a-000.tar")) as writer:
        writer.write({"__key__": "x/1", "jpg": b"picture", "txt": "one", "json": {"id": 5}})
        writer.write({"__key__": "x/2", "flac": b"sound", "json": {"text": "two"}})
        writer.write({"__key__": "x/3", "mp4": b"clip", "txt": "three", "cls": 3})
    write(tmp_path, **{"a-000_parquet": b"img2dataset's own table", "._a_tar": b"resource fork"})
    assert read(tmp_path) == [
        ("image", b"picture", "one"),
        ("audio", b"sound", "two"),
        ("video", b"clip", "three"),
    ]


def test_links_in_archives_are_followed_and_damage_is_one_bad_row(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", {"0.jpg": b"picture", "0.txt": b"zero", "1.txt": b"one"})
    with tarfile.open(path, "a") as writer:
        for kind, name in ((tarfile.LNKTYPE, "1.jpg"), (tarfile.SYMTYPE, "2.jpg")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "0.jpg"
            writer.addfile(info)
        info = tarfile.TarInfo("2.json")
        info.size = 2
        writer.addfile(info, io.BytesIO(b"{x"))
    found = read(path)
    assert found[:2] == [("image", b"picture", "zero"), ("image", b"picture", "one")]
    assert found[2][0] == "bad_record"
    assert "2.json is not JSON" in found[2][1]
    path.write_bytes(path.read_bytes()[: 5 * 512 + 100])
    valid, orphan, end = read(path)
    assert valid == ("image", b"picture", "zero")
    assert orphan[1] == "a text without a medium of the same name"
    assert "a.tar ends early" in end[1]


@pytest.mark.parametrize("save", ["to_parquet", "save_to_disk", "dict"])
def test_data_sets_of_hugging_face_are_read_in_place(tmp_path: Path, save: str) -> None:
    sounds = [subjects.sample("audio", "captions", 0, n).media[0].data for n in range(3)]
    cells = [{"bytes": data, "path": f"{n}.flac"} for n, data in enumerate(sounds)]
    features = datasets.Features({"audio": datasets.Audio(), "sentence": datasets.Value("string")})
    # Not from_dict, which decodes and encodes sounds with a package of its own.
    rows = pa.table({"audio": cells, "sentence": [f"sentence {n}" for n in range(3)]})
    rows = rows.cast(features.arrow_schema)
    info = datasets.DatasetInfo(features=features)
    made = datasets.Dataset(datasets.table.InMemoryTable(rows), info=info)
    datasets.disable_progress_bars()
    if save == "dict":
        datasets.DatasetDict(train=made).save_to_disk(tmp_path / "in", num_shards={"train": 2})
    elif save == "save_to_disk":
        made.save_to_disk(tmp_path / "in", num_shards=2)
        (tmp_path / "in" / "cache-1.arrow").write_bytes(b"datasets' own")
    else:
        (tmp_path / "in").mkdir()
        made.to_parquet(tmp_path / "in" / "train-0.parquet")
        write(tmp_path / "in", README_md="a card")
    assert read(tmp_path / "in") == [
        ("audio", data, f"sentence {n}") for n, data in enumerate(sounds)
    ]


def test_lists_of_media_and_of_captions(tmp_path: Path) -> None:
    images = [{"bytes": b"%d" % n, "path": None} for n in range(3)]
    rows: list[dict[str, Any]] = [
        {"image": images[:1], "caption": ["five", "of", "a", "picture", "each"]},
        {"image": images[:2], "caption": ["of both"]},
        {"image": images[:2], "caption": ["of 0", "of 1"]},
        {"image": images, "caption": ["of", "what?"]},
        {"image": [], "caption": ["of none"]},
        {"image": images[:1], "caption": None},
        {"image": images[:1], "caption": [None, " "]},
    ]
    schema = pa.schema([("image", pa.list_(CELL)), ("caption", pa.list_(pa.string()))])
    found = read(table(tmp_path / "list.parquet", rows, schema))
    assert [one[2] for one in found[:5]] == ["five", "of", "a", "picture", "each"]
    assert {one[:2] for one in found[:5]} == {("image", b"0")}
    assert found[5:8] == [
        ("image image", (b"0", b"1"), "of both"),
        ("image", b"0", "of 0"),
        ("image", b"1", "of 1"),
    ]
    assert [one[1] for one in found[8:]] == [
        "3 media, but 2 captions",
        "no medium in the columns ['caption', 'image']; want --columns image=image",
        "no text in 'caption'",
        "no text in 'caption'",
    ]


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"image": "a.jpg", "sentences": {"tokens": ["x"], "raw": "a text"}}, (), "a text"),
        ({"image": "a.jpg", "caption": {"en": "a text"}}, (), "a text"),
        ({"image": "a.jpg", "sentences": [{"raw": "a text"}]}, (), "a text"),
        ({"image": "a.jpg", "caption_1": "a text"}, (), "a text"),
        ({"Image_Path": "a.jpg", "TEXT": "a text"}, (), "a text"),
        ({"image": {"path": "a.jpg"}, "txt": "a text", "caption": "other"}, (), "a text"),
        ({"fig": "a.jpg", "note": "a text"}, ("image=fig", "caption=note"), "a text"),
        ({"x": {"f": "a.jpg"}, "y": [{"t": "a text"}]}, ("url=x.f", "caption=y.t"), "a text"),
        ({"image": "b.jpg", "photo": "a.jpg", "text": "a text"}, ("image=photo",), "a text"),
    ],
)
def test_columns_are_found_by_name_or_by_option(
    tmp_path: Path, row: dict, columns: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "list.jsonl").write_text(json.dumps(row) + "\n")
    assert read(tmp_path / "list.jsonl", *columns) == [("image", "a.jpg", expected)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("jpg", "image"), ("left.png", "image"), ("image_file_names", "image")),
        *(("audio_filepath", "audio"), ("video_path", "video"), ("point_cloud", "points")),
        *(("images", "image"), ("image_id", None), ("caption", None), ("clip_score", None)),
    ],
)
def test_a_column_s_name_says_its_kind(name: str, kind: str | None) -> None:
    assert kind_of_column(name) == kind


@pytest.mark.parametrize("name", ["list.csv.gz", "list.tsv", "list.json", "list.ndjson.zst"])
def test_tables_of_text_are_read_compressed_or_not(tmp_path: Path, name: str) -> None:
    rows = [{"file_name": f"{n}.wav", "text": f"a, b\tand {n}"} for n in range(2)]
    text = "".join(json.dumps(row) + "\n" for row in rows)  # lines of JSON in .json, too
    if ".csv" in name or ".tsv" in name:
        frame = pa.Table.from_pylist(rows).to_pandas()
        text = frame.to_csv(index=False, sep="\t" if ".tsv" in name else ",")
    data = text.encode()
    if name.endswith(".gz"):
        data = gzip.compress(data)
    if name.endswith(".zst"):
        data = pa.compress(data, codec="zstd", asbytes=True)
    (tmp_path / name).write_bytes(data)
    assert read(tmp_path / name) == [
        ("audio", "0.wav", "a, b\tand 0"),
        ("audio", "1.wav", "a, b\tand 1"),
    ]


def test_patterns_and_nested_folders_have_their_files_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b/2.jsonl", "a/1.jsonl", "a/._1.jsonl", "0.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"image": "x.jpg", "text": name}) + "\n")
    (tmp_path / "a" / "empty.jsonl").touch()
    (tmp_path / "notes.md").write_text("notes")
    caplog.set_level(logging.INFO)
    assert [one[2] for one in read(tmp_path)] == ["0.jsonl", "a/1.jsonl", "b/2.jsonl"]
    assert "2 empty or hidden files are skipped (._1.jsonl, empty.jsonl)" in caplog.text
    assert "1 other files are not read (notes.md)" in caplog.text
    assert [one[2] for one in read(tmp_path / "*" / "*.jsonl")] == ["a/1.jsonl", "b/2.jsonl"]
    with pytest.raises(UserError, match="no file matches"):
        read(tmp_path / "*.csv")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a_jpg": "x"}, "media without texts .* want x.txt or x.json next to x.jpg, or metadata"),
        ({"a_pdf": "x"}, r"neither media with texts, nor tar archives, nor tables \(1 .pdf\)"),
        ({}, "no files"),
        ({"a_jsonl": '{"conversations": []}'}, "a dialogue rather than a pair: want etl/instruct"),
        ({"a_jsonl": '{"texts": [], "images": []}'}, "want etl/interleaved.py"),
        ({"a_jsonl": '{"imge": "a.jpg", "text": "b"}'}, "want --columns image=imge"),
        ({"a_jsonl": '{"image": "a.jpg", "captoin": "b"}'}, "want --columns caption=captoin"),
        ({"a_jsonl": '{"jpg": "a.jpg", "png": "b", "text": "c"}'}, "media in jpg, png: want --col"),
        ({"a_tar": "not a tar"}, "want an uncompressed tar archive"),
        ({"a_parquet": "PAR1 no"}, "not a parquet file"),
        ({"images__1_jpg": "x", "texts__1_txt": "y"}, "no text in the columns .*"),
    ],
)
def test_other_inputs_are_refused_with_the_nearest_format(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, **files))


def test_options_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"photo": "a.jpg", "text": "b"}\n')
    with pytest.raises(UserError, match=r"--columns imge=photo: want .*; did you mean image=…\?"):
        read(tmp_path, "imge=photo")
    with pytest.raises(UserError, match=r"no column 'foto' among .*; did you mean 'photo'"):
        read(tmp_path, "image=foto")
    (tmp_path / "urls.txt").write_text("http://example.com/1.jpg\n")
    with pytest.raises(UserError, match=r"a list of URLs without texts .*: want etl/cc.py"):
        read(tmp_path / "urls.txt")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_killed_job_goes_on_from_media_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    samples = [records.pair_sample(0, number) for number in range(5)]
    data = [sample.media[0].data for sample in samples]
    captions = [sample.turns[1].text for sample in samples]
    if kind == "tar":
        members = {f"{n}.{end}": one for n in range(5) for end, one in
                   (("png", data[n]), ("txt", captions[n].encode()))}  # fmt: skip
        source = archive(tmp_path / "a.tar", members)
    else:
        cells = [{"bytes": one, "path": None} for one in data]
        rows = [{"image": cell, "text": text} for cell, text in zip(cells, captions, strict=True)]
        source = table(
            tmp_path / "a.parquet", rows, pa.schema([("image", CELL), ("text", "string")])
        )

    def run(output: str) -> list[bytes]:
        args = ["--input", str(source), "--output", str(tmp_path / output), "--workers", "1"]
        etl.pairs.run([*args, "--rows-per-shard", "2"])
        return [path.read_bytes() for path in sorted((tmp_path / output).glob("*.arrow"))]

    whole = run("whole")
    assert len(whole) == 3
    commit = JobState.add_time

    def stop_after_planning(self: JobState, stage: str, started: float, rows: int) -> None:
        commit(self, stage, started, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(JobState, "add_time", stop_after_planning)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    monkeypatch.undo()
    moved = tmp_path / "moved"  # a location depends neither on the place nor on the folder
    moved.mkdir()
    source = source.rename(moved / source.name)
    assert run("killed") == whole
