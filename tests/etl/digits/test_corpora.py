"""The digits world's videos, sounds, clouds and documents as lists of URLs."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

import etl.pointcloud
import etl.webvid
from etl.cli import UserError
from etl.digits.__main__ import run
from etl.digits.corpora import write_corpora
from etl.digits.faults import World
from etl.media import audio, points, video
from etl.sources import documents, sounds
from etl.sources.base import Records

WORLD = World(captions=0, dialogues=0, questions=0, seed=3, others=4)
URL = "http://127.0.0.1:1"
FORMATS = {
    "webvid.csv": etl.webvid.FORMATS["webvid"],
    "wavcaps.json": sounds.formats("", cut=False, local=False)["wavcaps"],
    "triplets.jsonl": etl.pointcloud.FORMATS["triplets"],
    "mmc4.jsonl": documents.formats(0.24)["mmc4"],
}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    write_corpora(folder, WORLD, URL)
    return folder


def examined(kind: str, data: bytes) -> str | None:
    """Why a medium is not sound."""
    found = {
        "video": lambda: video.examine(data, video.VideoLimits()),
        "audio": lambda: audio.examine(data, audio.AudioLimits()),
        "points": lambda: points.examine(data, points.PointsLimits()),
        "image": lambda: None,
    }[kind]()
    return found if isinstance(found, str) else None


@pytest.mark.parametrize("name", FORMATS)
def test_lists_hold_what_is_told_of_them(web: Path, name: str) -> None:
    truth = json.loads((web / "planted_media.json").read_bytes())[name]
    rows = pa.concat_tables(Records("x", web / name, FORMATS[name]).read(99)).to_pylist()
    assert (len(rows), truth["sound"] + sum(truth["drops"].values())) == (truth["rows"],) * 2
    seen: set[bytes] = set()
    drops: dict[str, int] = {}
    for row in rows:
        reasons = []
        for ref in row["media"]:
            path = web / "media" / ref["url"].removeprefix(f"{URL}/")
            data = path.read_bytes() if path.is_file() else b""
            fault = examined(ref["kind"], data) if data else "http_404"
            twin = "duplicate_medium" if ref["kind"] == "video" else "duplicate_record"
            reasons.append(fault or (twin if data in seen else None))
            seen.add(data)
        if all(reasons):
            drops[reasons[0]] = drops.get(reasons[0], 0) + 1
    assert drops == truth["drops"]


def test_a_seed_makes_the_same_bytes(web: Path, tmp_path: Path) -> None:
    write_corpora(tmp_path, WORLD, URL)
    for path in sorted(path for path in web.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(web)).read_bytes(), path


def test_one_row_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--others 1: want 0, or 2 or more"):
        run(["--output", str(tmp_path), "--others", "1"])
