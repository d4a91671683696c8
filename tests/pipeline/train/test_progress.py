"""The progress of a run in a log and on a terminal."""

import io
import logging
import re

import pytest
from rich.console import Console

from pipeline.train import progress
from pipeline.train.progress import ProgressLine


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def run(clock, caplog):
    """Run some steps of two seconds; return what the terminal shows and the log lines."""

    def call(*, first, total, every, terminal=False, quiet=False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, quiet=quiet, width=100)
        line = ProgressLine("digits pt", first=first, total=total, every=every, console=console)
        with caplog.at_level(logging.INFO), line:
            for step in range(first + 1, total + 1):
                clock[0] += 2.0
                line.step(step, loss=1.5, tokens_per_second=12345.6)
        return stream.getvalue(), caplog.messages

    return call


def test_a_log_gets_plain_lines(run):
    shown, lines = run(first=0, total=25, every=10)
    assert shown == ""
    assert lines == [
        "digits pt: step 1/25  loss 1.5000  12,346 tokens/s  0:00:48 left",
        "digits pt: step 10/25  loss 1.5000  12,346 tokens/s  0:00:30 left",
        "digits pt: step 20/25  loss 1.5000  12,346 tokens/s  0:00:10 left",
        "digits pt: step 25/25  loss 1.5000  12,346 tokens/s  0:00:00 left",
    ]


def test_a_resumed_run_counts_from_its_first_step(run):
    _, (first, *_) = run(first=3600, total=7200, every=10_000)
    assert first.startswith("digits pt: step 3601/7200")
    assert first.endswith("1:59:58 left")


def test_a_terminal_gets_a_bar(run):
    text, lines = run(first=0, total=3, every=1, terminal=True)
    assert not lines
    assert "3/3" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "\x1b[" in text


def test_other_ranks_are_silent(run):
    assert run(first=0, total=5, every=1, quiet=True) == ("", [])
