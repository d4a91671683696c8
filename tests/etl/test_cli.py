import subprocess
import sys
from dataclasses import dataclass

import pytest

from etl.cli import UserError, parse


@dataclass(frozen=True, kw_only=True)
class Options:
    """A command's help."""

    rows: int
    """How many."""
    name: str = "x"
    some_paths: tuple[str, ...] = ()


def test_options_are_typed() -> None:
    assert parse(Options, prog="job", args=["--rows", "3"]) == Options(rows=3)


@pytest.mark.parametrize(
    "paths",
    [
        ["--some-paths", "a", "b=c"],
        ["--some-paths", "a", "--name", "x", "--some-paths", "b=c"],
        ["--some_paths", "a", "--some-paths=b=c"],
    ],
)
def test_an_option_with_several_values_may_be_repeated(paths: list[str]) -> None:
    options = parse(Options, prog="job", args=[*paths, "--rows", "3"])
    assert options == Options(rows=3, some_paths=("a", "b=c"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rows", "many"], "rows"),
        (["--rows", "3", "--nmae", "y"], "--name"),
        ([], "--rows"),
    ],
)
def test_a_mistake_is_one_line_with_a_hint(args: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(Options, prog="job", args=args)
    assert "\n" not in str(caught.value)


def test_main_prints_one_line_and_exits_with_2() -> None:
    program = (
        "from etl.cli import UserError, main\n"
        "def run(args): raise UserError('a\\n  mistake')\n"
        "main(run)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr, done.stdout) == (2, "error: a mistake\n", "")
