"""The watchdog with a fake clock: what it records, which ranks it names, when it ends a rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pipeline.data.worker_status import WorkerStatus
from pipeline.train.watchdog import (
    GIVEN_UP,
    STALLED,
    PhaseTracker,
    Watchdog,
)

SECONDS = 8.0


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rank:
    """One rank's tracker and watchdog, without the thread."""

    def __init__(self, run: Path, rank: int, world: int, clock: Clock) -> None:
        self.tracker = PhaseTracker(clock=clock)
        self.codes: list[int] = []
        self.dog = Watchdog(
            self.tracker, run, rank=rank, world=world, seconds=SECONDS, end=self.codes.append
        )


def pass_time(clock: Clock, seconds: float, *ranks: Rank) -> None:
    for _ in range(int(seconds)):
        clock.now += 1
        for rank in ranks:
            rank.dog.tick()


def stalled(run: Path, rank: int) -> dict:
    return json.loads((run / f"stalled-rank-{rank}.json").read_text())


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_progress_keeps_a_rank_alive(tmp_path: Path, clock: Clock) -> None:
    rank = Rank(tmp_path, 0, 1, clock)
    for step in range(5):
        rank.tracker.enter_phase("data", step=step)
        pass_time(clock, SECONDS - 1, rank)
    assert not rank.codes
    assert not list(tmp_path.glob("stalled-*"))


def test_the_seconds_of_each_phase_are_returned_once(clock: Clock) -> None:
    tracker = PhaseTracker(clock=clock)
    for phase, seconds in (("data", 3), ("forward", 2), ("backward", 1), ("forward", 2)):
        tracker.enter_phase(phase)
        tracker.enter_module("backbone")
        clock.now += seconds
    assert tracker.take_seconds() == {"start": 0, "data": 3, "forward": 4, "backward": 1}
    clock.now += 5
    assert tracker.take_seconds() == {"forward": 5}


def test_a_stalled_rank_reports_and_then_ends(tmp_path: Path, clock: Clock, capfd) -> None:
    rank = Rank(tmp_path, 0, 1, clock)
    rank.tracker.enter_phase("forward", step=7, samples=("a", "b"))
    rank.tracker.enter_module("inputs.image.encoder")
    pass_time(clock, SECONDS + 1, rank)
    report = stalled(tmp_path, 0)
    assert (report["step"], report["phase"]) == (7, "forward")
    assert (report["module"], report["samples"]) == ("inputs.image.encoder", ["a", "b"])
    assert "test_watchdog.py" in (tmp_path / "stalled-rank-0.txt").read_text()  # the stacks
    (line,) = capfd.readouterr().err.splitlines()
    assert "rank 0" in line
    assert "step 7: forward in inputs.image.encoder, samples a, b" in line
    assert not rank.codes
    pass_time(clock, 2, rank)
    assert rank.codes == [STALLED]


def test_a_rank_that_makes_progress_after_all_is_not_ended(tmp_path: Path, clock: Clock) -> None:
    rank = Rank(tmp_path, 0, 1, clock)
    pass_time(clock, SECONDS + 1, rank)
    rank.tracker.enter_phase("sync")
    pass_time(clock, SECONDS, rank)
    assert not rank.codes


def test_a_rank_that_is_behind_is_named_by_the_others(tmp_path: Path, clock: Clock) -> None:
    ranks = [Rank(tmp_path, number, 3, clock) for number in range(3)]
    for rank in ranks:
        rank.tracker.enter_phase("data", step=3)
    ranks[1].tracker.decoding.write("clip-17 (row 5)")
    for rank in (ranks[0], ranks[2]):
        rank.tracker.enter_phase("sync", samples=("x",))
    pass_time(clock, SECONDS + 1, *ranks)
    for number in (0, 2):
        (words,) = stalled(tmp_path, number)["behind"]
        assert "rank 1" in words
        assert words.endswith("is behind, last in step 3: data, samples clip-17 (row 5)")
    own = stalled(tmp_path, 1)
    assert (own["phase"], own["samples"], own["behind"]) == ("data", ["clip-17 (row 5)"], [])


def test_a_silent_rank_is_named(tmp_path: Path, clock: Clock) -> None:
    alive, silent = (Rank(tmp_path, number, 2, clock) for number in range(2))
    for rank in (alive, silent):
        rank.tracker.enter_phase("forward", step=2, samples=(f"of {rank.dog._rank}",))
    pass_time(clock, 3, alive, silent)
    pass_time(clock, SECONDS - 2, alive)
    (words,) = stalled(tmp_path, 0)["behind"]
    assert "silent" in words
    assert words.endswith("last in step 2: forward, samples of 1")


def test_ranks_in_different_modules_of_one_phase_are_named(tmp_path: Path, clock: Clock) -> None:
    ranks = [Rank(tmp_path, number, 2, clock) for number in range(2)]
    for rank, module in zip(ranks, ("inputs.image.encoder", "backbone.layers.0"), strict=True):
        rank.tracker.enter_phase("forward", step=1)
        rank.tracker.enter_module(module)
    pass_time(clock, SECONDS + 1, *ranks)
    (words,) = stalled(tmp_path, 0)["behind"]
    assert words.endswith("last in step 1: forward in backbone.layers.0")


def test_after_the_third_stall_in_one_step_the_rank_gives_up(tmp_path: Path, clock: Clock) -> None:
    codes = []
    for _ in range(3):
        rank = Rank(tmp_path, 0, 1, clock)
        rank.tracker.enter_phase("forward", step=7)
        pass_time(clock, SECONDS + 3, rank)
        codes += rank.codes
    assert codes == [STALLED, STALLED, GIVEN_UP]
    next_step = Rank(tmp_path, 0, 1, clock)
    next_step.tracker.enter_phase("forward", step=8)
    pass_time(clock, SECONDS + 3, next_step)
    assert next_step.codes == [STALLED]


def test_data_workers_that_hang_are_ended_with_the_rank(tmp_path: Path, clock: Clock) -> None:
    rank, worker = Rank(tmp_path, 0, 1, clock), mock.Mock()
    with mock.patch("multiprocessing.active_children", return_value=[worker]):
        pass_time(clock, SECONDS + 3, rank)
    worker.kill.assert_called_once_with()


def test_as_a_context_manager_it_ticks_in_a_thread_and_removes_its_state_file(
    tmp_path: Path,
) -> None:
    tracker = PhaseTracker()
    with Watchdog(tracker, tmp_path, rank=0, world=1, seconds=0.08, end=lambda code: None) as dog:
        while not (tmp_path / "stalled-rank-0.json").exists():
            assert dog._thread.is_alive()
    assert not dog._thread.is_alive()
    assert not list((tmp_path / "ranks").glob("*.json"))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)
        )
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return {"logits": (self.head(x),)}


def test_modules_are_recorded_forward_and_backward_but_not_inside_layers() -> None:
    seen: list[str] = []
    tracker = PhaseTracker()
    tracker.enter_module = seen.append  # type: ignore[method-assign]
    model = nn.ModuleDict({"tower": Stack()})
    tracker.register_hooks(model)
    (logits,) = model["tower"](torch.ones(1, 4))["logits"]
    expected = ["tower", "tower.layers.0", "tower.layers.1", "tower.head"]
    assert seen == expected
    seen.clear()
    logits.sum().backward()
    assert set(seen) == set(expected)
    assert [name for name in seen if "layers" in name] == ["tower.layers.1", "tower.layers.0"]


class StatusDataset(Dataset[str]):
    def __init__(self, decoding: WorkerStatus) -> None:
        self.decoding = decoding

    def __getitem__(self, index: int) -> str:
        self.decoding.write(f"sample {index}")
        return ""


def test_the_rank_sees_what_its_workers_decode() -> None:
    decoding = WorkerStatus(workers=2)
    loader: Callable[..., DataLoader] = DataLoader
    list(
        loader(
            StatusDataset(decoding), sampler=[1, 2], num_workers=2, multiprocessing_context="spawn"
        )
    )
    assert decoding.read() == ("sample 1", "sample 2")


def test_a_status_is_truncated_and_can_be_cleared() -> None:
    decoding = WorkerStatus()
    decoding.write("é" * 500)
    assert decoding.read()[0].startswith("é" * 79)
    decoding.write("")
    assert decoding.read() == ()
