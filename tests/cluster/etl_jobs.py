"""ETL jobs as processes of their own that need not import anything first.

They are forked from a server that has imported the jobs and Ray, which takes longer than most of
these jobs do. Otherwise each is what a user starts: `python etl/JOB.py …` in the repository, with
exit code, output and environment of its own, and it can be killed at any instant.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import pytest

from etl import audio, coco, instruct, interleaved, laion, pointcloud, refilter, webvid
from tests.cluster.ray_cluster import ROOT, DigitsWeb, RayHead

JOBS = (audio, coco, instruct, interleaved, laion, pointcloud, refilter, webvid)
"""What the server has imported before it forks; a job that is not here imports itself first."""

_FORKS = get_context("forkserver")


@dataclass(frozen=True, kw_only=True)
class EtlJob:
    """A job that was started; its output goes into files, so that it never waits for a reader."""

    process: BaseProcess
    folder: Path

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it has logged so far."""
        return (self.folder / "stderr").read_text()

    def finish(self) -> None:
        """Wait until it ends; it must end well."""
        self.process.join()
        assert self.process.exitcode == 0, self.stderr

    def summary(self) -> dict:
        """Wait until it ends; return what it prints with `--json`."""
        self.finish()
        return json.loads(self.stdout.splitlines()[-1])

    def kill(self) -> bool:
        """End it by SIGKILL; return whether it was still running."""
        self.process.kill()
        self.process.join()
        assert self.process.exitcode in (0, -signal.SIGKILL), self.stderr
        return self.process.exitcode != 0

    def wait_until(self, happened: Callable[[], object]) -> None:
        """Wait until something has happened, which must be before the job's end."""
        while not happened():
            assert self.process.exitcode is None, f"it ended too early: {self.stderr}"
            self.process.join(0.005)  # a file's appearance is no event that could be awaited

    def kill_when(self, happened: Callable[[], object]) -> None:
        """End it by SIGKILL as soon as something has happened."""
        self.wait_until(happened)
        assert self.kill(), "it ended before it could be killed"

    def dies(self) -> None:
        """Wait until it has died by SIGKILL."""
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL, self.stderr


class Drivers:
    """Starts jobs whose drivers are children of a process that has imported everything."""

    def __init__(self, server: forkserver.ForkServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._jobs: list[EtlJob] = []

    def start(self, job: str, words: Sequence[object], *, dies_before: str | None = None) -> EtlJob:
        """Start `python etl/JOB.py WORDS`; the caller awaits its end.

        Args:
            job: the name of the job.
            words: what follows on the command line.
            dies_before: name of a file; the job is killed when it is about to rename one to or
                from that name.
        """
        folder = self._folder / f"{len(self._jobs):03}-{job}"
        folder.mkdir()
        command = [f"etl/{job}.py", *map(str, words)]
        process = _FORKS.Process(target=_run, args=(command, folder, dies_before))
        self._launch(process)
        self._jobs.append(EtlJob(process=process, folder=folder))
        return self._jobs[-1]

    def run(self, job: str, words: Sequence[object]) -> dict:
        """Run a job that must end well; return what it prints with `--json`."""
        return self.start(job, [*words, "--json"]).summary()

    def stop(self) -> None:
        """End what a failed test has left running, and the server."""
        for job in self._jobs:
            job.process.kill()
            job.process.join()
        self._server._stop()

    def _launch(self, process: BaseProcess) -> None:
        # The module knows of one server only, which belongs to whoever starts it first.
        connect = self._server.connect_to_new_process
        with mock.patch.object(forkserver, "connect_to_new_process", connect):
            process.start()


@contextmanager
def start_drivers(head: RayHead, folder: Path) -> Iterator[Drivers]:
    """Bring up the server; its jobs use the cluster, of which this process' environment is free.

    Ray reads how to prove its identity when it is imported, so it has to be in the environment
    before that.
    """
    server = forkserver.ForkServer()
    server.set_forkserver_preload([__name__])
    with mock.patch.dict(os.environ, {**head.env, "RAY_ADDRESS": head.address}, clear=True):
        server.ensure_running()
    drivers = Drivers(server, folder)
    try:
        yield drivers
    finally:
        drivers.stop()


@pytest.fixture(scope="session")
def drivers(ray_head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drivers]:
    """Starts jobs on the cluster that the whole run shares."""
    with start_drivers(ray_head, tmp_path_factory.mktemp("jobs")) as found:
        yield found


@pytest.fixture(scope="session")
def laion_shards(digits_web: DigitsWeb, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards that `python etl/laion.py` makes of the served list, as a user would start it.

    Nothing names a cluster to it, so its workers are processes of this machine.
    """
    assert "RAY_ADDRESS" not in os.environ
    output = tmp_path_factory.mktemp("laion") / "shards"
    command = [sys.executable, "etl/laion.py", *laion_words(digits_web, output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


def laion_words(web: DigitsWeb, output: Path) -> list[str]:
    """What follows `python etl/laion.py` to make shards of the served list."""
    files = ("--input", str(web.folder / "laion.parquet"), "--output", str(output))
    return [*files, "--allow-private-addresses", "--rows-per-shard", "32"]


def _run(command: list[str], folder: Path, dies_before: str | None) -> None:
    """Become the job: what `python etl/JOB.py …` does after its imports."""
    for name, stream in (("stdout", 1), ("stderr", 2)):
        with (folder / name).open("wb") as file:
            os.dup2(file.fileno(), stream)
    if dies_before:
        _die_before(dies_before)
    os.chdir(ROOT)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def _die_before(name: str) -> None:
    """Have this process kill itself when it is about to rename a file to or from a name."""
    rename = Path.rename

    def dying(self: Path, target: Path) -> Path:
        if name in (Path(target).name, self.name):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.rename = Path.replace = dying
