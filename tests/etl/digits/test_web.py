"""The digits world as a small web: lists, planted faults, and the server."""

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from etl.cli import UserError
from etl.digits.__main__ import run
from etl.digits.faults import FAULTS, WorldSize, caption_rows, planted_counts
from etl.digits.lists import write_lists, write_media
from etl.digits.server import MediaServer

SIZE = WorldSize(captions=60, dialogues=6, questions=5, seed=1)
URL = "http://127.0.0.1:1"


def write(folder: Path, size: WorldSize = SIZE, url: str = URL) -> list[int]:
    """Write a world; returns one entry per rendered file."""
    ticks: list[int] = []
    write_media(folder, size, lambda: ticks.append(1))
    write_lists(folder, size, url)
    return ticks


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    write(folder)
    return folder


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


def test_the_same_seed_gives_the_same_bytes(web: Path, tmp_path: Path) -> None:
    write(tmp_path / "again")
    assert digest(tmp_path / "again") == digest(web)
    write(tmp_path / "other", WorldSize(captions=60, dialogues=6, questions=5, seed=2))
    assert digest(tmp_path / "other") != digest(web)


def test_rendering_is_not_repeated(tmp_path: Path) -> None:
    assert write(tmp_path)
    assert not write(tmp_path, url="http://127.0.0.1:2")  # another port: only the lists
    assert "127.0.0.1:2/" in (tmp_path / "dialogues.json").read_text()
    less = WorldSize(captions=3, dialogues=1, questions=1, seed=1)
    assert write(tmp_path, less)
    assert len(list((tmp_path / "media" / "dialogues").iterdir())) == 1


def test_the_list_has_the_published_columns(web: Path) -> None:
    names = ["URL", "TEXT", "HEIGHT", "WIDTH", "similarity", "punsafe", "pwatermark"]
    assert pq.read_schema(web / "laion.parquet").names == names


def test_planted_faults_are_listed_and_real(web: Path) -> None:
    listed = json.loads((web / "planted.json").read_bytes())
    rows = pq.read_table(web / "laion.parquet").to_pylist()
    planted = listed["planted"]
    assert set(planted) == set(FAULTS)
    assert {kind: fault["count"] for kind, fault in planted.items()} == planted_counts(SIZE)
    assert all(len(fault["rows"]) == fault["count"] > 0 for fault in planted.values())
    assert listed["rows"] == len(rows) == 60 + sum(planted_counts(SIZE).values())
    for row in planted["dead_link"]["rows"]:
        assert not (web / "media" / rows[row]["URL"].removeprefix(f"{URL}/")).exists()
    urls = Counter(row["URL"] for row in rows)
    assert sum(count - 1 for count in urls.values()) == planted["repeated_url"]["count"]
    assert all(rows[row]["punsafe"] > 0.5 for row in planted["unsafe"]["rows"])


def test_each_duplicate_has_an_original_of_its_own() -> None:
    for size in (SIZE, WorldSize(captions=50, dialogues=0, questions=0, seed=7)):
        duplicates = [
            row for row in caption_rows(size) if row.fault in ("duplicate_image", "repeated_url")
        ]
        assert len({row.number for row in duplicates}) == len(duplicates)
        assert all(row.number < size.captions for row in duplicates)


def test_a_world_may_be_empty() -> None:
    assert caption_rows(WorldSize(captions=0, dialogues=0, questions=0, seed=0)) == ()


@pytest.fixture
def server(web: Path) -> Iterator[MediaServer]:
    with MediaServer(web / "media", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_server_serves_the_faults(web: Path, server: MediaServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)

    def get(path: str) -> tuple[int, str | None, str | None, bytes]:
        connection.request("GET", path)  # all over one connection, which is kept alive
        answer = connection.getresponse()
        names = ("Content-Type", "X-Robots-Tag")
        return answer.status, *(answer.headers[name] for name in names), answer.read()

    paths = {row.fault: f"/{row.path}" for row in caption_rows(SIZE)}
    status, kind, robots, body = get(paths[None])
    assert (status, kind, robots) == (200, "image/jpeg", None)
    assert body == (web / "media" / paths[None][1:]).read_bytes()
    assert get(paths["dead_link"])[0] == 404
    assert get(paths["html_page"])[1] == "text/html"
    assert not get(paths["truncated"])[3].endswith(b"\xff\xd9")  # JPEG's end of image
    assert get(paths["opted_out"])[2] == "noai, noimageai"
    assert get("/captions/")[0] == 404
    assert get("/../laion.parquet")[0] == 404
    connection.close()


def test_the_command_serves_until_a_signal(tmp_path: Path) -> None:
    args = ["--output", str(tmp_path), "--captions", "4", "--dialogues", "2", "--questions", "2"]
    urls = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "etl.digits", *args, "--serve", "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        assert any("serving" in line for line in process.stderr)
        urls.append((tmp_path / "address").read_text().strip())
        with pq.ParquetFile(tmp_path / "laion.parquet") as table:
            assert table.read()["URL"][0].as_py().startswith(urls[-1])
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        process.stderr.close()
        assert not (tmp_path / "address").exists()
    assert urls[0] == urls[1]  # the last run's port again, so that its lists stay valid


def test_a_port_in_use_is_reported(tmp_path: Path, server: MediaServer) -> None:
    with pytest.raises(UserError, match="cannot listen on"):
        run(["--output", str(tmp_path / "web"), "--serve", str(server.server_port)])
    assert not (tmp_path / "web").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--captions", "-1"], "--captions -1: want 0 or more"),
        (["--serve", "70000"], "--serve 70000: want a port"),
    ],
)
def test_bad_options_are_reported(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(["--output", str(tmp_path), *words])
