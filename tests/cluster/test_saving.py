"""Checkpoints while training goes on: killed in mid-write, and on a disk that is full."""

import os
import signal
from pathlib import Path

import pytest

from tests.cluster.ranks import Ranks, losses, run_ranks, wait_for, wait_for_message
from tests.disks import make_room, small_disk
from tests.worlds import caption_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS = 10
SMALL = ("--global-batch", 4, "--micro-batch", 2, "--max-steps", STEPS, "--save-every", 2)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_shards(tmp_path_factory.mktemp("captions"), 64)


@pytest.fixture(scope="module")
def whole(captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs, with a milestone every four steps."""
    run = tmp_path_factory.mktemp("whole") / "pt"
    outcome = run_ranks(2, *words(captions, run), "--keep-every", 4)
    assert outcome.code == 0, outcome.stderr
    return run


def words(data: Path, run: Path) -> tuple[object, ...]:
    return ("pt", "digits", "--data", data, "--output", run, *SMALL)


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-????????"))


def test_the_newest_and_the_milestones_are_there(whole: Path) -> None:
    assert checkpoints(whole) == [4, 8, 10]
    assert not list((whole / "checkpoints").glob("step-*.*"))


def test_killed_while_one_is_written(captions: Path, whole: Path, tmp_path: Path) -> None:
    """Rank 1 stands still while it is at its part: the checkpoint never becomes one."""
    run = tmp_path / "run"
    ranks = Ranks(2, words(captions, run))
    wait_for(run / "checkpoints" / "step-00000002", ranks)
    wait_for(run / "checkpoints" / "step-00000004.partial", ranks)
    for process in reversed(ranks.processes):
        os.kill(process.pid, signal.SIGKILL)
    ranks.wait()
    assert run_ranks(2, *words(captions, run)).code == 0
    assert losses(run) == losses(whole)
    assert not list((run / "checkpoints").glob("step-*.*"))


def test_a_full_disk_ends_in_one_line_and_loses_nothing(
    captions: Path, whole: Path, tmp_path: Path
) -> None:
    """There is room for one checkpoint, so the second and the third cannot be written."""
    newest = whole / "checkpoints" / f"step-{STEPS:08}"
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    with small_disk(tmp_path / "disk", int(1.5 * size) + (256 << 10)) as disk:
        run = disk / "run"
        outcome = run_ranks(2, *words(captions, run))
        assert outcome.code == 2, outcome.stderr
        told = "step-00000004: could not be written (rank "
        assert outcome.stderr.count(told) == 1
        assert "No space left on device); the run continues without it" in outcome.stderr
        [line] = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
        assert "step-00000006: could not be written" in line
        assert line.endswith("the same command resumes from the checkpoint step-00000002")
        assert "Traceback" not in outcome.stderr
        assert checkpoints(run) == [2]

        make_room(disk, 10 * size)
        outcome = run_ranks(2, *words(captions, run))
        assert outcome.code == 0, outcome.stderr
        assert losses(run) == losses(whole)


def test_a_disk_that_is_full_for_a_while_costs_one_checkpoint(
    captions: Path, whole: Path, tmp_path: Path
) -> None:
    newest = whole / "checkpoints" / f"step-{STEPS:08}"
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    with small_disk(tmp_path / "disk", size // 2) as disk:
        run = disk / "run"
        # Half of the steps lie between the first checkpoint, which fails, and the next.
        ranks = Ranks(2, (*words(captions, run), "--save-every", STEPS // 2))
        wait_for_message("step-00000005: could not be written", ranks)
        make_room(disk, 10 * size)
        outcome = ranks.wait()
        assert outcome.code == 0, outcome.stderr
        assert losses(run) == losses(whole)
        assert checkpoints(run) == [STEPS]
