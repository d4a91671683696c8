"""The page in headless Chromium, as a visitor uses it: see `tests/browse_page.py`."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etl.digits.subjects import sample as subject_sample
from etl.storage.shards import ShardSet
from tests.runs import random_run
from tests.served import picture

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-page" / "bin" / "python"
CHROMIUM = Path("/usr/bin/chromium")
LONGEST = 12

CI = os.environ.get("CI") == "true"  # where they fail, and are not skipped

pytestmark = [
    pytest.mark.nightly(minutes=3),
    pytest.mark.skipif(not CI and not PYTHON.exists(), reason="no .venv-page: `make page`"),
    pytest.mark.skipif(
        not CI and not CHROMIUM.exists(), reason="no Chromium: apt install chromium"
    ),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_for_page(port: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the server ended with {process.returncode}")


def wait_until_closed(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.2)


def page_folders(folder: Path) -> list[Path]:
    """Return the page's folders of temporary files."""
    return [*folder.glob("mmloom-page-*")]


@contextmanager
def serving(folder: Path, *runs: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve runs with the page; yields the server's process and the page's port."""
    port = free_port()
    words = ["serve", "--port", "0", "--page-port", port, "--page-python", PYTHON]
    words += ["--max-new-tokens", LONGEST, "--run", *runs]
    server = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        text=True,
    )
    try:
        wait_for_page(port, server)
        yield server, port
    finally:
        server.terminate()
        server.wait()


def test_a_visitor_chats(tmp_path: Path) -> None:
    random_run(tmp_path / "omni", "digits_omni")
    random_run(tmp_path / "any", "digits_any", signals=30.0)
    files = tmp_path / "files"
    files.mkdir()
    (files / "digit.png").write_bytes(picture())
    (files / "bad.png").write_bytes(b"no image")
    for kind, name in (("audio", "sound.flac"), ("video", "video.mp4"), ("points", "points.npy")):
        data = subject_sample(kind, "captions", 0, 0).media[0].data
        (files / name).write_bytes(data)
    with serving(tmp_path, tmp_path / "omni", tmp_path / "any") as (_, port):
        command = [PYTHON, ROOT / "tests" / "browse_page.py", f"http://127.0.0.1:{port}", files]
        done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
    wait_until_closed(port)  # the page ends with its server
    assert not page_folders(tmp_path)
    seen = json.loads(done.stdout)
    assert all(visit["hosts"] == [] for visit in seen.values())  # nothing comes from elsewhere
    check_uploads(seen["uploads"], files)
    check_changes(seen["changes"])
    check_generation(seen["generation"])
    phone = seen["phone"]
    assert phone["overflow"] == 0
    assert phone["brightness"] < 64
    assert phone["box_below"] <= 0


def check_uploads(seen: dict, files: Path) -> None:
    assert seen["answer"]
    assert seen["steps"] > 2  # the text grew
    assert (seen["pictures"], seen["sounds"], seen["videos"]) == (1, 1, 1)
    assert seen["bad"].startswith("⚠ its image cannot be decoded")
    assert all(seen[name] for name in ("sound.flac", "video.mp4", "points.npy"))
    messages = seen["json"]
    assert [each["role"] for each in messages] == ["user", "assistant"] * 4  # without the bad file
    assert messages[1]["content"].split() == seen["answer"].split()
    kinds = [each["content"][0]["type"] for each in messages[::2]]
    assert kinds == ["image_url", "audio_url", "video_url", "points_url"]
    with zipfile.ZipFile(files / seen["shard"]) as archive:
        archive.extractall(files / "shard")
    (found,) = ShardSet([files / "shard" / "dialogue"])
    assert [medium.kind for medium in found.media] == ["image", "audio", "video", "points"]
    assert found.media[0].data == picture()
    assert [turn.role for turn in found.turns] == ["user", "assistant"] * 4
    assert found.turns[1].text.split() == seen["answer"].split()


def check_changes(seen: dict) -> None:
    answers = [seen[name] for name in ("short", "retried", "edited")]
    assert len(set(answers)) == 3
    assert len(answers[0]) < len(answers[1])  # one token, and forty
    assert seen["question"] == seen["taken_back"] == "Which colour is it"
    assert seen["stopped"]
    assert seen["after_stop"]


def check_generation(seen: dict) -> None:
    assert seen["generated"] == 24
    assert seen["sides"][0]
    assert seen["sides_asked"] == [2, 2]  # a picture and a text each


def test_the_page_ends_with_a_server_that_is_killed(tmp_path: Path) -> None:
    random_run(tmp_path / "toy", "digits")
    with serving(tmp_path, tmp_path / "toy") as (server, port):
        assert page_folders(tmp_path)
        server.send_signal(signal.SIGKILL)
        wait_until_closed(port)
        while page_folders(tmp_path):
            time.sleep(0.2)
