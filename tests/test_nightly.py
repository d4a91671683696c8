"""The nightly tier: left out by default, all of it on request, or in shares that add up to it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import shares

CONFTEST = Path(__file__).parent / "conftest.py"
TESTS = """
import pytest

def test_daily():
    pass

@pytest.mark.nightly(minutes=7)
@pytest.mark.parametrize("number", range(5))
def test_nightly(number):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_some.py").write_text(TESTS)
    return tmp_path


def run(folder: Path, *words: str) -> tuple[int, list[str], str]:
    """Return the exit code, the tests that passed, and all that was printed."""
    command = [sys.executable, "-m", "pytest", "-rA", "--rootdir", ".", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    passed = [line.split("::")[1] for line in lines if line.startswith("PASSED ")]
    return done.returncode, passed, done.stdout


def test_the_nightly_tests_run_on_request_alone(folder: Path) -> None:
    nightly = [f"test_nightly[{number}]" for number in range(5)]
    assert run(folder)[:2] == (0, ["test_daily"])
    assert run(folder, "--nightly")[:2] == (0, ["test_daily", *nightly])
    # Seven minutes each, so that no two fit into a share.
    found = [run(folder, "--nightly-share", f"c0ffe{number}")[:2] for number in range(5)]
    assert sorted(found) == [(0, [name]) for name in nightly]


def test_what_would_end_too_late_is_left_out_and_listed(folder: Path) -> None:
    conftest = folder / "conftest.py"
    text = conftest.read_text()
    conftest.write_text(text.replace("MOST_MINUTES = 15.0", "MOST_MINUTES = 5.0"))
    assert text != conftest.read_text()
    code, passed, printed = run(folder, "--nightly-share", "0")
    assert (code, passed) == (0, [])
    assert "left out of this share" in printed
    assert "test_some.py::test_nightly[" in printed.partition("left out of this share")[2]


def test_each_test_is_in_one_share_and_no_share_is_too_long() -> None:
    minutes = {f"test_{number}": 1.0 + number % 8 for number in range(40)}
    parts = shares(list(minutes.items()))
    assert sorted(name for part in parts for name in part) == sorted(minutes)
    assert all(sum(minutes[name] for name in part) <= 12 for part in parts)
    assert parts == shares(list(reversed(minutes.items())))


def test_a_test_that_no_share_can_hold_is_a_mistake() -> None:
    with pytest.raises(pytest.UsageError, match="test_a: takes 13 minutes"):
        shares([("test_a", 13.0)])
