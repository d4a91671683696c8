"""The digits world's videos, sounds, clouds and documents as lists of URLs."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from etl.cli import UserError
from etl.digits.__main__ import run
from etl.digits.corpora import write_corpora
from etl.digits.faults import WorldSize
from etl.media import audio, points, video
from etl.sources import clouds, documents, sounds, videos
from etl.sources.base import RecordReader

SIZE = WorldSize(captions=0, dialogues=0, questions=0, seed=3, others=4)
URL = "http://127.0.0.1:1"
FORMATS = {
    "webvid.csv": videos.FORMATS["webvid"],
    "wavcaps.json": sounds.FORMATS["wavcaps"],
    "triplets.jsonl": clouds.FORMATS["triplets"],
    "mmc4.jsonl": documents.FORMATS["mmc4"],
}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    write_corpora(folder, SIZE, URL)
    return folder


def drop_reason(kind: str, data: bytes) -> str | None:
    """The reason for dropping a medium, or None."""
    found = {
        "video": lambda: video.probe(data, video.VideoLimits()),
        "audio": lambda: audio.probe(data, audio.AudioLimits()),
        "points": lambda: points.probe(data, points.PointsLimits()),
        "image": lambda: None,
    }[kind]()
    return found if isinstance(found, str) else None


@pytest.mark.parametrize("name", FORMATS)
def test_lists_contain_the_planted_faults(web: Path, name: str) -> None:
    expected = json.loads((web / "planted_media.json").read_bytes())[name]
    rows = pa.concat_tables(RecordReader("x", web / name, FORMATS[name]).read(99)).to_pylist()
    assert (len(rows), expected["valid"] + sum(expected["drops"].values())) == (
        expected["rows"],
    ) * 2
    seen: set[bytes] = set()
    drops: dict[str, int] = {}
    for row in rows:
        reasons = []
        for ref in row["media"]:
            path = web / "media" / ref["url"].removeprefix(f"{URL}/")
            data = path.read_bytes() if path.is_file() else b""
            reason = drop_reason(ref["kind"], data) if data else "http_404"
            duplicate = "duplicate_medium" if ref["kind"] == "video" else "duplicate_record"
            reasons.append(reason or (duplicate if data in seen else None))
            seen.add(data)
        if all(reasons):
            drops[reasons[0]] = drops.get(reasons[0], 0) + 1
    assert drops == expected["drops"]


def test_the_same_seed_gives_the_same_bytes(web: Path, tmp_path: Path) -> None:
    write_corpora(tmp_path, SIZE, URL)
    for path in sorted(path for path in web.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(web)).read_bytes(), path


def test_one_row_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--others 1: want 0, or 2 or more"):
        run(["--output", str(tmp_path), "--others", "1"])
