"""Commands that a command runs: they end with it, in order."""

import os
import signal
import subprocess
import sys
from pathlib import Path

CHILD = """
import signal, sys
from pathlib import Path

def save(*_):
    Path("saved").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
signal.pause()
"""
PARENT = """
import signal, sys
from pipeline.quickstart.commands import call

signal.signal(signal.SIGTERM, signal.default_int_handler)
call([sys.executable, "-c", sys.argv[1]])
"""


def test_a_request_to_stop_reaches_the_command(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait() != 0
    assert (tmp_path / "saved").is_file()
