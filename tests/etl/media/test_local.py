import base64
import binascii
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.cli import UserError
from etl.media.local import LocalMedia, decode_base64

FILES = {"train/a.jpg": b"first", "train/b.jpg": b"second", "val/b.jpg": b"third"}


def folder(path: Path) -> Path:
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in FILES.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def coded(path: Path) -> Path:
    path.write_text(json.dumps({k: base64.b64encode(v).decode() for k, v in FILES.items()}))
    return path


def otter(path: Path) -> Path:
    """As Otter's `to_parquet` of a frame with names as its index; base64 with URL-safe letters."""
    texts = [base64.urlsafe_b64encode(data).decode() for data in FILES.values()]
    table = pa.table({"base64": texts, "__index_level_0__": list(FILES)})
    index = json.dumps({"index_columns": ["__index_level_0__"]})
    pq.write_table(table.replace_schema_metadata({"pandas": index}), path, row_group_size=2)
    return path


def hugging_face(path: Path) -> Path:
    """A folder of parts of `{id, image: {bytes, path}}`."""
    path.mkdir()
    for number, (name, data) in enumerate(FILES.items()):
        image = {"bytes": data, "path": None}
        pq.write_table(
            pa.Table.from_pylist([{"id": name, "image": image}]), path / f"{number}.parquet"
        )
    return path


KINDS = {
    "otter.parquet": otter,
    "parts": hugging_face,
    "folder": folder,
    "media.zip": zipped,
    "media.tar": tarred,
    "LA.json": coded,
}


@pytest.fixture(params=KINDS)
def media(request: pytest.FixtureRequest, tmp_path: Path) -> LocalMedia:
    path = KINDS[request.param](tmp_path / request.param)
    return LocalMedia([path], max_bytes=100)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("train/a.jpg", b"first"),
        ("/train/a.jpg", b"first"),
        ("./train/a.jpg", b"first"),
        ("coco/images/train/b.jpg", b"second"),
        ("val/b.jpg", b"third"),
        ("a.jpg", b"first"),
        ("elsewhere/a.jpg", b"first"),
        ("file:///data/train/a.jpg", b"first"),
        ("file://train/%61.jpg", b"first"),
    ],
)
def test_files_are_found_by_path_suffix(media: LocalMedia, name: str, data: bytes) -> None:
    assert media.read(name).data == data


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("c.jpg", "not_in_media"),
        ("b.jpg", "ambiguous_name"),
        ("../train/../../etc/passwd", "not_in_media"),
        ("", "not_in_media"),
    ],
)
def test_missing_and_ambiguous_names_have_a_reason(
    media: LocalMedia, name: str, reason: str
) -> None:
    found = media.read(name)
    assert (found.data, found.reason, found.detail) == (None, reason, name)


def test_file_sizes_are_limited(tmp_path: Path) -> None:
    for make in (folder, zipped, tarred, coded):
        path = tmp_path / make.__name__
        media = LocalMedia(
            [make(path.with_suffix(".json") if make is coded else path)], max_bytes=5
        )
        assert media.read("train/a.jpg").data == b"first"
        assert media.read("train/b.jpg").reason == "body_too_large"


def test_earlier_paths_take_precedence(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "train").mkdir(parents=True)
    (other / "train" / "a.jpg").write_bytes(b"other")
    media = LocalMedia([other, zipped(tmp_path / "media.zip")], max_bytes=100)
    assert media.read("train/a.jpg").data == b"other"
    assert media.read("train/b.jpg").data == b"second"


def test_fingerprints_depend_on_content_not_on_paths(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    first = LocalMedia([one], max_bytes=9).fingerprint()
    assert LocalMedia([two], max_bytes=9).fingerprint() == first
    (two / "train" / "a.jpg").write_bytes(b"changed")
    assert LocalMedia([two], max_bytes=9).fingerprint() != first


def test_damaged_files_have_a_reason(tmp_path: Path) -> None:
    path = zipped(tmp_path / "media.zip")
    data = bytearray(path.read_bytes())
    start = data.index(b"first") if b"first" in data else 41
    data[start : start + 3] = b"\xff\xff\xff"
    path.write_bytes(data)
    assert LocalMedia([path], max_bytes=100).read("train/a.jpg").reason == "unreadable_file"
    text = tmp_path / "LA.json"
    text.write_text('{"a": "not base64!"}')
    assert LocalMedia([text], max_bytes=100).read("a").reason == "unreadable_file"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("nowhere", None, "--media .*nowhere: no such file or folder"),
        ("media.tar.gz", b"\x1f\x8b\x08compressed", "want a folder, a zip, an uncompressed tar"),
        ("list.json", b"[1]", "its JSON is not an object"),
        ("list.json", b"{", "want a folder"),
    ],
)
def test_other_files_are_rejected(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        LocalMedia([path], max_bytes=100)


def test_a_table_without_media_is_reported(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match="want a column of names and one of base64 or bytes, got id"
    ):
        LocalMedia([tmp_path / "a.parquet"], max_bytes=100)


def test_links_are_files_too(tmp_path: Path) -> None:
    root = folder(tmp_path / "folder")
    (root / "link.jpg").symlink_to("train/a.jpg")
    (root / "again").symlink_to("val")
    (root / "val" / "up").symlink_to("..")  # must not be followed for ever
    (root / "broken.jpg").symlink_to("nowhere")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "c.jpg").write_bytes(b"fourth")
    (root / "other").symlink_to(outside)
    archive = tmp_path / "media.tar"
    with tarfile.open(archive, "w") as packed:
        packed.add(root, ".")
        packed.add(outside, "outside")
        info = tarfile.TarInfo("hard.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "train/b.jpg"
        packed.addfile(info)
        info = tarfile.TarInfo("latest")
        info.type, info.linkname = tarfile.SYMTYPE, "./outside"
        packed.addfile(info)
    for path in (root, archive):
        media = LocalMedia([path], max_bytes=100)
        assert media.read("link.jpg").data == b"first"
        assert media.read("again/b.jpg").data == b"third"
        assert media.read("x/link.jpg").data == b"first"
        assert media.read("a.jpg").data == b"first"  # the link has another name
        assert media.read("x/val/b.jpg").data == b"third"
        assert media.read("broken.jpg").reason == "not_in_media"
    assert LocalMedia([root], max_bytes=100).read("other/c.jpg").data == b"fourth"
    packed_media = LocalMedia([archive], max_bytes=100)
    assert packed_media.read("hard.jpg").data == b"second"
    assert packed_media.read("latest/c.jpg").data == b"fourth"
    assert packed_media.read("c.jpg").data == b"fourth"  # by two names, but one file


def test_names_in_archives_are_spelt_in_many_ways(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9/1.jpg", "cafe\u0301/1.jpg"
    path = tmp_path / "media.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("windows\\folder\\1.jpg", b"backslashes")
        archive.writestr(decomposed, b"as macOS writes it")
    raw = "\u65e5\u672c.jpg".encode()
    # Python sets the flag for every name that is not ASCII: write the bytes as other programs do.
    flagless = tmp_path / "flagless.zip"
    with zipfile.ZipFile(flagless, "w") as archive:
        archive.writestr("?" * len(raw), b"no flag")
    flagless.write_bytes(flagless.read_bytes().replace(b"?" * len(raw), raw))
    media = LocalMedia([path, flagless], max_bytes=100)
    assert media.read("windows/folder/1.jpg").data == b"backslashes"
    assert media.read("x\\folder\\1.jpg").data == b"backslashes"
    assert media.read(composed).data == media.read(decomposed).data == b"as macOS writes it"
    assert media.read("\u65e5\u672c.jpg").data == b"no flag"


def test_a_name_loses_folders_only_while_one_file_fits(tmp_path: Path) -> None:
    """Neither the first of two folders nor the one at the top is the file that was meant."""
    for name in ("photos/x/0001.jpg", "scans/page/0001.jpg", "scans/page/0002.jpg", "0003.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "photos" / "0003.jpg").write_bytes(b"another")
    both = LocalMedia([tmp_path / "photos" / "x", tmp_path / "scans" / "page"], max_bytes=100)
    assert both.read("scans/page/0001.jpg").reason == "ambiguous_name"
    assert both.read("scans/page/0002.jpg").data == b"scans/page/0002.jpg"
    whole = LocalMedia([tmp_path], max_bytes=100)
    assert whole.read("data/scans/page/0001.jpg").data == b"scans/page/0001.jpg"
    assert whole.read("elsewhere/0001.jpg").reason == "ambiguous_name"
    assert whole.read("0003.jpg").data == b"0003.jpg"
    assert whole.read("elsewhere/0003.jpg").reason == "ambiguous_name"


def test_names_that_are_no_utf8_have_a_fingerprint(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"latin")
    media = LocalMedia([tmp_path], max_bytes=100)
    assert len(media.fingerprint()) == 64
    assert media.read(os.fsdecode(b"caf\xe9.jpg")).data == b"latin"


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text,
        lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)) + "\n",
        lambda text: "\r\n ".join(text[i : i + 8] for i in range(0, len(text), 8)),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: text.rstrip("="),
        lambda text: f"data:image/jpeg;base64,{text}",
        lambda text: f"data:image/jpeg;base64,data:image/png;base64,{text}",
        lambda text: text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
    ],
)
def test_base64_is_spelt_in_many_ways(spell, tmp_path: Path) -> None:
    data = bytes(range(256)) + b"!"
    text = spell(base64.b64encode(data).decode())
    assert decode_base64(text) == data
    (tmp_path / "LA.json").write_text(json.dumps({"a": text}))
    assert LocalMedia([tmp_path / "LA.json"], max_bytes=300).read("a").data == data


@pytest.mark.parametrize("text", ["not base64!", "a", "YQ==YQ==", "caf\u00e9"])
def test_other_text_is_no_base64(text: str) -> None:
    with pytest.raises(binascii.Error):
        decode_base64(text)
