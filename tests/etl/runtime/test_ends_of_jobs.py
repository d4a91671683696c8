"""How a job ends that an operator, or the machine, ends: one line, and a command that goes on."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import etl.instruct
from etl.cli import UserError
from etl.digits.records import pair
from etl.digits.scenes import encode, render
from etl.storage.manifest import read_manifest
from tests.disks import make_room, small_disk

ROOT = Path(__file__).parents[3]


def dialogues(folder: Path, names: list[str]) -> Path:
    """A list of one question about each picture."""
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a digit"}]
    records = [{"id": name, "image": name, "conversations": turns} for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "list.json").write_text(json.dumps(records))
    return folder / "list.json"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        picture = encode(render(pair(0, number).scene), "image/png")
        (folder / f"{number}.png").write_bytes(picture)
    return folder


@pytest.fixture
def listing(tmp_path: Path, pictures: Path) -> Path:
    return dialogues(tmp_path, sorted(path.name for path in pictures.iterdir()))


def words(listing: Path, output: Path, *more: str) -> list[str]:
    return ["--input", str(listing), "--output", str(output), "--executor", "local", *more]


def job(listing: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "etl" / "instruct.py"), *words(listing, output, *more)]


def test_after_a_job_of_no_rows_the_corrected_command_runs(
    listing: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    etl.instruct.run(words(listing, output))
    assert read_manifest(output).drops == {"no_media": 4}
    etl.instruct.run(words(listing, output, "--media", str(pictures)))
    assert (read_manifest(output).rows, read_manifest(output).drops) == (4, {})
    with pytest.raises(UserError, match="belongs to another job"):  # it has rows to lose
        etl.instruct.run(words(listing, output))


def test_after_a_start_without_a_cluster_the_corrected_command_runs(
    listing: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match="no Ray cluster answers there"):
        etl.instruct.run(
            ["--input", str(listing), "--output", str(output), "--media", str(pictures)]
        )
    etl.instruct.run(words(listing, output, "--media", str(pictures), "--min-side", "8"))
    assert read_manifest(output).rows == 4


def test_ctrl_c_is_one_line_that_says_how_to_go_on(tmp_path: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(300)  # for a job that ends before it asks
        url = f"http://127.0.0.1:{server.getsockname()[1]}/0.png"  # which never answers
        command = job(dialogues(tmp_path, [url]), tmp_path / "out")
        started = subprocess.Popen(
            [*command, "--allow-private-addresses"],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # as a terminal's foreground job: all its processes are asked
        )
        connection, _ = server.accept()
        os.killpg(started.pid, signal.SIGINT)
        _, errors = started.communicate()
        connection.close()
    assert started.returncode == 128 + signal.SIGINT
    lines = [line for line in errors.splitlines() if " etl: " not in line]
    assert lines == ["interrupted; the same command resumes the job"]


def test_a_full_disk_is_one_line_and_with_room_the_command_goes_on(
    listing: Path, pictures: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 24 << 10) as disk:
        command = job(listing, disk / "out", "--media", str(pictures))
        full = subprocess.run(command, capture_output=True, text=True, check=False)
        (line,) = [line for line in full.stderr.splitlines() if " etl: " not in line]
        assert (full.returncode, line[:7]) == (2, "error: ")
        assert line.endswith("No space left on device; make room, and repeat the command")
        make_room(disk, 16 << 20)
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert read_manifest(disk / "out").rows == 4
