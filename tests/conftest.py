"""The order of the tests, and the nightly tier: tests that not every change needs to wait for.

They are marked `nightly(minutes=…)` with the minutes that they take on two idle cores, or just
`nightly` where it is less than three in the cluster tests, or a third elsewhere.

    pytest                                      without them
    pytest --nightly                            with them
    pytest --nightly-share COMMIT               a share of them, and nothing else

A commit's hash says which share is its own, so that within a handful of commits all have run. No
test is begun that would not end within a quarter of an hour since the first was; those that are
left out for that are listed.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

SHARE_MINUTES = 12.0
"""How long a share takes, on two idle cores."""
MOST_MINUTES = 15.0
"""How long it may take, on any."""

MINUTES = {"cluster": 3.0, "fast": 1 / 3}
"""Of a test whose mark does not say, in the cluster tests and elsewhere."""

LONGEST = ("kill", "training", "elastic", "slurm_training", "presets", "features", "mixed")
"""Files of cluster tests that come first: so no process is left with one of them at the end."""

_started = pytest.StashKey[float]()
_LEFT_OUT = f"would not end within {MOST_MINUTES:.0f} minutes"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the nightly tests, too")
    parser.addoption(
        "--nightly-share", metavar="COMMIT", help="run a commit's share of the nightly tests alone"
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts `make test &` so, and tests that send Ctrl-C to a process wait for ever.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Of tests/cluster/warm.py; inherited by the processes of pytest-xdist.
    os.environ.setdefault("WARM_RANKS_OWNER", str(os.getpid()))
    text = "nightly(minutes): for `make test-all`, and a share for CI; minutes on two idle cores"
    config.addinivalue_line("markers", text)


def minutes(item: pytest.Item) -> float | None:
    """Return what a nightly test takes; None for any other."""
    mark = item.get_closest_marker("nightly")
    tier = "fast" if item.get_closest_marker("cluster") is None else "cluster"
    return None if mark is None else float(mark.kwargs.get("minutes", MINUTES[tier]))


def shares(items: list[tuple[str, float]]) -> list[set[str]]:
    """Spread tests, each with its minutes, over as few shares as hold them, alike in length."""
    for name, each in items:
        if each > SHARE_MINUTES:
            raise pytest.UsageError(f"{name}: takes {each:g} minutes, longer than a share may")
    for count in range(1, len(items) + 1):
        taken = [0.0] * count
        parts: list[set[str]] = [set() for _ in range(count)]
        for name, each in sorted(items, key=lambda item: (-item[1], item[0])):
            shortest = taken.index(min(taken))
            taken[shortest] += each
            parts[shortest].add(name)
        if max(taken) <= SHARE_MINUTES:
            return parts
    return [set()]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    first = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda item: first.index(name) if (name := item.path.name) in first else 99)
    commit = config.getoption("--nightly-share")
    if commit is not None:
        known = [(item.nodeid, each) for item in items if (each := minutes(item)) is not None]
        parts = shares(known)
        chosen = parts[int(commit, 16) % len(parts)]
    elif config.getoption("--nightly"):
        return
    else:
        chosen = {item.nodeid for item in items if minutes(item) is None}
    left = [item for item in items if item.nodeid not in chosen]
    items[:] = [item for item in items if item.nodeid in chosen]
    config.hook.pytest_deselected(items=left)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin no test of a share that would end too late."""
    config = item.config
    if config.getoption("--nightly-share") is None:
        return
    spent = (time.monotonic() - config.stash.setdefault(_started, time.monotonic())) / 60
    if spent + (minutes(item) or 0.0) > MOST_MINUTES:
        pytest.skip(_LEFT_OUT)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", ())  # in whichever process
    if names := [report.nodeid for report in skipped if _LEFT_OUT in str(report.longrepr)]:
        terminalreporter.section("left out of this share")
        for name in names:
            terminalreporter.line(name)
