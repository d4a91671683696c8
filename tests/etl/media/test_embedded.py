"""Media in the input's own files: tables and archives are listed without them and read in place."""

import io
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.cli import UserError
from etl.media.embedded import EmbeddedMedia, TableFile, in_file, is_embedded, member_location
from etl.sources.files import BadRow, table_rows

FEATURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How `datasets` writes its features Image, Audio and Video."""


def image(number: int, *, stored: bool = True) -> dict[str, Any]:
    return {"bytes": b"image %d" % number if stored else None, "path": f"{number}.jpg"}


def rows() -> list[dict[str, Any]]:
    """Six rows of images: alone, in a list, inside messages, without bytes, and as plain bytes."""
    return [
        {
            "image": image(n, stored=n != 3) if n != 4 else None,
            "images": [image(10 * n + k) for k in range(n % 3)],
            "messages": [{"role": "user", "content": [{"image": image(100 + n)}]}],
            "jpg": b"plain %d" % n,
            "text": f"row {n}",
        }
        for n in range(6)
    ]


SCHEMA = pa.schema(
    [
        ("image", FEATURE),
        ("images", pa.list_(FEATURE)),
        (
            "messages",
            pa.list_(
                pa.struct(
                    [
                        ("role", pa.string()),
                        ("content", pa.large_list(pa.struct([("image", FEATURE)]))),
                    ]
                )
            ),
        ),
        ("jpg", pa.large_binary()),
        ("text", pa.string()),
    ]
)


def parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, row_group_size=4)
    return path


def arrow_stream(path: Path, table: pa.Table) -> Path:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def arrow_file(path: Path, table: pa.Table) -> Path:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return path


@pytest.mark.parametrize("write", [parquet, arrow_stream, arrow_file])
def test_a_table_s_media_are_read_in_place(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "a table.parquet", pa.Table.from_pylist(rows(), SCHEMA))
    found = list(table_rows(path))
    assert [row["text"] for row in found] == [f"row {n}" for n in range(6)]
    assert (found[3]["image"], found[4]["image"]) == ("3.jpg", None)
    assert found[5]["image"].name == "5.jpg"
    assert found[5]["messages"][0]["content"][0]["image"].endswith("#5/messages/0/content/0/image")
    media = EmbeddedMedia(tmp_path, max_bytes=100)

    def read(location: str) -> bytes | None:
        assert is_embedded(location)
        return media.read(in_file(location, path.name)).data

    for n in (5, 0, 2, 1):  # backwards, too
        assert read(found[n]["image"]) == b"image %d" % n
        assert [read(one) for one in found[n]["images"]] == [
            b"image %d" % (10 * n + k) for k in range(n % 3)
        ]
        (content,) = found[n]["messages"][0]["content"]
        assert read(content["image"]) == b"image %d" % (100 + n)
        assert read(found[n]["jpg"]) == b"plain %d" % n


def test_a_listing_holds_no_media(tmp_path: Path) -> None:
    size = 1 << 20
    batch = pa.record_batch({"image": pa.array([bytes(size)] * 16), "text": ["a"] * 16})
    with pq.ParquetWriter(tmp_path / "list.parquet", batch.schema, compression="zstd") as writer:
        for _ in range(8):
            writer.write_batch(batch)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    peak = 0
    count = 0
    for _ in table_rows(tmp_path / "list.parquet"):
        count += 1
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert count == 128
    assert tracemalloc.get_traced_memory()[1] < size
    tracemalloc.stop()
    assert peak < 64 * size  # of 128, and about two batches


def test_members_of_an_archive_are_read_in_place(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a#1.tar", "w") as archive:
        for name, data in (("a.jpg", b"first"), ("b.jpg", b"second")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with tarfile.open(tmp_path / "a#1.tar") as archive:
        info = archive.getmember("b.jpg")
    location = in_file(member_location(info.offset_data, info.size, "b.jpg"), "a#1.tar")
    assert location == f"input:a%231.tar#{info.offset_data}+6/b.jpg"
    assert EmbeddedMedia(tmp_path, max_bytes=6).read(location).data == b"second"
    assert EmbeddedMedia(tmp_path, max_bytes=5).read(location).reason == "body_too_large"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("input:../secret#0+3/x", "unreadable_file"),
        ("input:%2e%2e/secret#0+3/x", "unreadable_file"),
        ("input:/etc/passwd#0+3/x", "unreadable_file"),
        ("input:missing.parquet#0/image", "unreadable_file"),
        ("input:list.parquet#7/image", "unreadable_file"),
        ("input:list.parquet#0/picture", "unreadable_file"),
        ("input:list.parquet#0/image/3", "unreadable_file"),
        ("input:list.parquet#1/image", "unreadable_file"),  # an empty cell
        ("input:list.parquet", "body_too_large"),  # the whole file
        ("input:list.parquet#0/image", "body_too_large"),
        ("input:list.parquet#0+99999/x", "body_too_large"),
        ("input:list.parquet#999999+3/x", "unreadable_file"),
    ],
)
def test_locations_without_bytes_have_a_reason(tmp_path: Path, location: str, reason: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    table = pa.table({"image": pa.array([b"too large", None], pa.binary())})
    pq.write_table(table, tmp_path / "in" / "list.parquet")
    found = EmbeddedMedia(tmp_path / "in", max_bytes=5).read(location)
    assert (found.data, found.reason) == (None, reason)
    assert found.detail


def test_a_row_of_invalid_text_is_one_bad_row(tmp_path: Path) -> None:
    texts = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts, "jpg": [b"1", b"2", b"3"]}), tmp_path / "a.parquet")
    first, bad, third = table_rows(tmp_path / "a.parquet")
    assert (first["text"], third["text"]) == ("one", "three")
    assert isinstance(bad, BadRow)
    assert "'text': 'utf-8' codec can't decode" in bad.error


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(UserError, match="two columns are called 'text'; rename one"):
        TableFile(parquet(tmp_path / "list.parquet", table))


@pytest.mark.parametrize("write", [pa.ipc.new_file, pa.ipc.new_stream])
def test_offsets_that_lead_out_of_a_file_are_not_followed(tmp_path: Path, write: Any) -> None:
    """Arrow itself would read there, and end the process by a segmentation fault."""
    data = io.BytesIO()
    table = pa.table({"image": [b"x" * 1001, b"y" * 1002]})
    with write(data, table.schema) as writer:
        writer.write_table(table)
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 1001, 2003))
    far = offsets[:8] + (2**31 - 1).to_bytes(4, "little")
    assert data.getvalue().count(offsets) == 1
    (tmp_path / "list.arrow").write_bytes(data.getvalue().replace(offsets, far))
    media = EmbeddedMedia(tmp_path, max_bytes=2**31)
    assert media.read("input:list.arrow#1/image").reason == "unreadable_file"
    (tmp_path / "list.arrow").write_bytes(data.getvalue())
    media = EmbeddedMedia(tmp_path, max_bytes=2**31)
    assert media.read("input:list.arrow#1/image").data == b"y" * 1002
