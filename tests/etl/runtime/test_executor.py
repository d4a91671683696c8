"""The executor: results, errors, and workers that die, on processes and on Ray actors alike."""

import contextlib
import functools
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.cli import UserError
from etl.runtime import ray_workers
from etl.runtime.executor import Executor, ExecutorName, open_executor
from etl.runtime.job_state import JobState
from etl.runtime.worker_pool import ExecutorError

EXECUTORS = ("local", pytest.param("ray", marks=pytest.mark.cluster))


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Executor]:
    with open_executor(request.param, log=tmp_path / "workers.log") as found:
        yield found


class Square:
    """Squares a number; counts its calls, so that a worker that is used again can be told."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, number: int) -> tuple[int, int, int]:
        self.calls += 1
        return number * number, os.getpid(), self.calls


class DiesOnce:
    """Dies on its item unless another worker has done so before."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self, number: int) -> int:
        if number == 2 and not self.marker.exists():
            self.marker.touch()
            os.write(1, b"about to die\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return number


class Dies:
    def __call__(self, number: int) -> int:
        os._exit(number)


class Refuses:
    def __call__(self, number: int) -> int:
        raise UserError(f"--number {number}: want another")


class Unpicklable:
    def __call__(self, _: int) -> int:
        class LocalError(Exception):
            pass

        raise LocalError("it cannot be pickled")


def test_workers_are_reused_and_every_item_has_its_result(executor: Executor) -> None:
    assert executor.cpus >= 1
    with executor.pool(2, cpus=0.5) as pool:
        results = list(pool.map_unordered("square", Square, range(20)))
        again = list(pool.map_unordered("square", Square, range(20, 22)))
    assert sorted(square for square, _, _ in results) == [n * n for n in range(20)]
    pids = {pid for _, pid, _ in results}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert {pid for _, pid, _ in again} <= pids
    assert max(calls for _, _, calls in again) > 2  # not built again


def test_an_item_whose_worker_dies_is_given_to_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, marker = tmp_path / "workers.log", tmp_path / "marker"
    with open_executor("local", log=log) as executor, executor.pool(2, cpus=0.5) as pool:
        build = functools.partial(DiesOnce, marker)
        assert sorted(pool.map_unordered("dies", build, range(6))) == list(range(6))
    assert f"a worker died (SIGKILL, its output is in {log}); its item is retried" in caplog.text
    assert "about to die" in log.read_text()


def test_workers_that_keep_dying_end_the_job(executor: Executor) -> None:
    with (
        executor.pool(2, cpus=0.5) as pool,
        pytest.raises(ExecutorError, match="4 workers died on the same item"),
    ):
        list(pool.map_unordered("dies", Dies, [3]))


class DiesOfPositive:
    """Dies of positive numbers."""

    def __call__(self, number: int) -> int:
        if number > 0:
            os._exit(3)
        return number


def test_another_item_may_take_the_place_of_one_that_a_worker_died_of() -> None:
    with open_executor("local") as executor, executor.pool(2, cpus=0.5) as pool:
        done = pool.map_unordered("dies", DiesOfPositive, [1, -2, 3], lambda item: -item)
        assert sorted(done) == [-3, -2, -1]


def test_an_error_is_raised_as_itself(executor: Executor) -> None:
    with executor.pool(2, cpus=0.5) as pool:
        with pytest.raises(UserError) as refused:
            list(pool.map_unordered("refuses", Refuses, [5]))
        assert str(refused.value) == "--number 5: want another"
        with pytest.raises(Exception, match="it cannot be pickled"):
            list(pool.map_unordered("unpicklable", Unpicklable, [5]))
        assert next(pool.map_unordered("square", Square, [3]))[0] == 9  # the pool still works


@pytest.mark.parametrize(
    ("name", "address", "wanted"),
    [("auto", None, "LocalWorkers"), ("local", "127.0.0.1:1", "LocalWorkers")],
)
def test_no_cluster_is_asked_for_unless_one_is_named(
    name: ExecutorName, address: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with open_executor(name) as executor:
        assert type(executor._workers).__name__ == wanted


JOB = """
import time
from etl.runtime.executor import open_executor
from tests.etl.runtime.test_executor import Pids
with open_executor("local") as executor, executor.pool(1, cpus=1) as pool:
    list(pool.map_unordered("pids", Pids, [0]))
"""


class Pids:
    def __call__(self, _: int) -> int:
        os.write(1, f"{os.getpid()}\n".encode())
        signal.pause()
        return 0


def test_a_worker_ends_with_its_killed_job() -> None:
    job = subprocess.Popen([sys.executable, "-c", JOB], stdout=subprocess.PIPE)
    pid = int(job.stdout.readline())
    assert Path(f"/proc/{pid}/comm").read_text() == "mmloom-worker\n"
    worker = os.pidfd_open(pid)
    job.kill()
    job.wait()
    job.stdout.close()
    # A pidfd becomes readable when its process has ended.
    ready, _, _ = select.select([worker], [], [], 60)
    os.close(worker)
    assert ready


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers there"),
        ("http://127.0.0.1:8265", "want HOST:PORT"),
        ("nonsense", "want HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    match = f"^RAY_ADDRESS={address}: {message}"
    with pytest.raises(UserError, match=match), open_executor("auto"):
        pass


def test_another_server_at_the_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "_ANSWER_SECONDS", 0.5)  # Ray itself would try for minutes
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        match = "no Ray cluster answers there .what answers there is not Ray.; correct or unset it"
        with pytest.raises(UserError, match=match), open_executor("auto"):
            pass


def test_an_output_that_cannot_be_written_is_one_line() -> None:
    state = JobState(Path("/dev/null/out"))
    match = "--output /dev/null/out: cannot be written"
    with pytest.raises(UserError, match=match), state.lock():
        pass
