"""The page in headless Chromium: upload, ask, answer, a bad file, a generated picture, a phone."""

import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import random_run
from tests.served import picture

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-page" / "bin" / "python"
CHROMIUM = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-page: `make page`"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium: apt install chromium"),
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


def test_a_visitor_chats(tmp_path) -> None:
    random_run(tmp_path / "toy", "digits")
    random_run(tmp_path / "any", "digits_any", signals=30.0)
    (tmp_path / "digit.png").write_bytes(picture())
    (tmp_path / "bad.png").write_bytes(b"no image")
    port = free_port()
    words = ["serve", "--run", tmp_path / "toy", "--run", tmp_path / "any", "--port", "0"]
    words += ["--page-port", port, "--page-python", PYTHON, "--max-new-tokens", "40"]
    server = subprocess.Popen([sys.executable, "-m", "pipeline", *map(str, words)], cwd=ROOT)
    try:
        wait_for_page(port, server)
        given = [f"http://127.0.0.1:{port}", tmp_path / "digit.png", tmp_path / "bad.png", tmp_path]
        command = [PYTHON, ROOT / "tests" / "browse_page.py", *given]
        done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    finally:
        server.terminate()
        server.wait()
    seen = json.loads(done.stdout)
    assert seen["answer"]
    assert seen["shown"] == 1
    assert "its image cannot be decoded" in seen["bad"]
    assert [each["role"] for each in seen["messages"]] == ["user", "assistant"]
    assert seen["messages"][1]["content"].split() == seen["answer"].split()
    assert seen["generated"] == 24
    assert seen["overflow"] == 0
    with pytest.raises(OSError, match="refused"):  # the page ends with its server
        socket.create_connection(("127.0.0.1", port))
