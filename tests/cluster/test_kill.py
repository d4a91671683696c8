"""Nothing lost, nothing twice: a job, its workers and its nodes are killed, and it goes on.

The digits world is served from this process, so that a test knows when a download is under way, and
can hold it there. Jobs are children of a process that has imported everything already.
"""

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from ray.util.state import list_actors

from etl import laion
from etl.digits.faults import WorldSize
from etl.digits.lists import write_lists, write_media
from etl.runtime.job_state import JobState
from etl.storage.manifest import read_manifest
from etl.storage.shards import ShardSet
from tests.cluster.ray_cluster import BIN, ROOT, RayHead, free_ports, running, start_ray
from tests.etl.download.web import Handler, Web, served

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

WORLD = WorldSize(captions=200, dialogues=1, questions=1, seed=0)
RANGES = 8
KILLS = 12
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["etl.laion", "ray.data", "tests.cluster.test_kill"])


class DigitsHandler(Handler):
    """Serves the digits world's files; holds what is asked for past `left` until the gate opens.

    While it is ill it fails for a fourth of them.
    """

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        web = self.server
        if self.path != "/robots.txt":
            with web.count:
                web.left -= 1
                held = web.left < 0
            if held and not web.gate.is_set():
                web.held.set()
                web.gate.wait(60)
        if web.ill and int(hashlib.sha256(self.path.encode()).hexdigest(), 16) % 4 == 0:
            self.answer(503)
            return
        path = web.folder / "media" / self.path.lstrip("/")
        opted = {"X-Robots-Tag": "noai"} if self.path.startswith("/optout/") else {}
        if path.is_file():
            self.answer(200, body=path.read_bytes(), headers=opted)
        else:
            self.answer(404)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with served() as server:
        server.RequestHandlerClass = DigitsHandler
        server.folder = tmp_path_factory.mktemp("web")
        server.count, server.left = threading.Lock(), 0
        server.gate, server.held = threading.Event(), threading.Event()
        server.gate.set()
        server.ill = False
        write_media(server.folder, WORLD, lambda: None)
        write_lists(server.folder, WORLD, server.base)
        yield server
        server.gate.set()


@pytest.fixture
def held(web: Web) -> Iterator[Web]:
    """The world, of which so far only a part can be had."""
    web.left = 100
    web.held.clear()
    web.gate.clear()
    yield web
    web.gate.set()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A cluster that all jobs of this file share, through this process' environment."""
    with start_ray(tmp_path_factory.mktemp("ray")) as head, pytest.MonkeyPatch.context() as patch:
        for name, value in {**head.env, "RAY_ADDRESS": head.address}.items():
            patch.setenv(name, value)
        yield head


def words(web: Web, output: Path, *more: str) -> list[str]:
    return [
        *("--input", str(web.folder / "laion.parquet"), "--output", str(output)),
        *("--allow-private-addresses", "--rows-per-shard", "32", "--timeout", "60"),
        *("--json", *more),
    ]


def job(words: list[str], dies_before: str | None = None) -> None:
    """Run the job, or until it is about to give a file its name."""
    rename = Path.rename

    def dying(self: Path, target: Path) -> Path:
        if Path(target).name == dies_before or self.name == dies_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    if dies_before:
        Path.rename = Path.replace = dying
    laion.run(words)


def start(words: list[str], dies_before: str | None = None) -> BaseProcess:
    process = _FORKS.Process(target=job, args=(words, dies_before))
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    process.join()
    assert process.exitcode == 0


def kill_when(process: BaseProcess, happened: Callable[[], object]) -> None:
    while not happened():
        assert process.exitcode is None, "it ended before it could be killed"
        process.join(0.005)  # a file's appearance is no event that could be awaited
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(web: Web, head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the job leaves that nobody interrupts."""
    output = tmp_path_factory.mktemp("whole") / "shards"
    finish(start(words(web, output)))
    manifest = read_manifest(output)
    assert len(manifest.shards) == RANGES
    assert manifest.rows == WORLD.captions
    return output


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same(output: Path, whole: Path) -> None:
    """The same bytes, and nothing beside them."""
    assert read_manifest(output) == read_manifest(whole)
    ShardSet([output])  # compares every shard's sha256 with the manifest
    assert names(output) == names(whole)
    drops = "drops.parquet"
    assert (output / drops).read_bytes() == (whole / drops).read_bytes()


def test_killed_at_random_instants(web: Web, whole: Path, tmp_path: Path) -> None:
    instants = random.Random(3)
    kills = ended = 0
    while kills < KILLS:
        output = tmp_path / f"shards-{ended}"
        process = start(words(web, output))
        process.join(instants.uniform(0.5, 6))
        process.kill()
        process.join()
        if process.exitcode:
            assert process.exitcode == -signal.SIGKILL
            kills += 1
        else:
            same(output, whole)
            ended += 1
    finish(start(words(web, output)))
    same(output, whole)


def test_killed_in_every_stage(held: Web, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    state = JobState(output)
    todo = words(held, output)

    def dies_before(name: str) -> None:
        process = start(todo, name)
        process.join()
        assert process.exitcode == -signal.SIGKILL

    dies_before("candidates.arrow")
    dies_before("plan.json")
    assert not state.saved_plan()
    kill_when(start(todo), held.held.is_set)  # in mid-download
    done = len(list(state.work.glob("unit-*")))
    assert done < RANGES
    held.gate.set()
    kill_when(start(todo), lambda: len(list(state.work.glob("unit-*"))) == RANGES)
    assert not list(output.glob("*.arrow"))  # so duplicates were not yet decided
    kill_when(start(todo), lambda: list(state.work.glob("final-*")))
    for name in ("drops.parquet", "report.html", "manifest.json", ".work"):
        dies_before(name)
    assert read_manifest(output) == read_manifest(whole)  # killed as it cleared up
    finish(start(todo))
    same(output, whole)


def test_a_second_run_does_nothing(
    web: Web, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    # A Ray that nobody could connect to, and a web that is gone.
    env = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}"}
    seen = web.seen.copy()
    command = [sys.executable, "etl/laion.py", *words(web, whole)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "already complete" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before
    assert web.seen == seen


def actors(address: str) -> list[tuple[int, str]]:
    """Pid and node of every actor that does ranges; asks the cluster."""
    found = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True)
    return [(one.pid, one.node_id) for one in found if one.class_name == "_Worker"]


@pytest.fixture(scope="module")
def workers(head: RayHead) -> Iterator[Callable[[], list[tuple[int, str]]]]:
    """See `actors`; in a process that has the cluster's token."""
    with ProcessPoolExecutor(1, mp_context=_FORKS) as pool:
        yield lambda: pool.submit(actors, head.dashboard).result()


def test_a_worker_dies(held: Web, workers, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    process = start(words(held, output))
    assert held.held.wait(60)
    pid, _ = workers()[0]
    os.kill(pid, signal.SIGKILL)
    held.gate.set()
    finish(process)
    same(output, whole)


def test_a_node_dies(held: Web, head: RayHead, workers, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    command = [str(BIN / "ray"), "start", "--block", f"--address={head.address}", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
    with running(command, ready="Ray runtime started", env=head.env):
        process = start(words(held, output, "--workers", "4"))
        assert held.held.wait(60)
        while len({node for _, node in workers()}) < 2:
            assert process.exitcode is None
    # All processes of the node were killed.
    held.gate.set()
    finish(process)
    same(output, whole)


def test_a_retry_is_killed(web: Web, head: RayHead, tmp_path: Path) -> None:
    def run(output: Path, *more: str) -> list[str]:
        return words(web, output, "--retries", "0", *more)

    outputs = tmp_path / "whole", tmp_path / "killed"
    web.ill = True
    finish(start(run(outputs[0])))
    assert read_manifest(outputs[0]).drops["http_503"] > 20
    shutil.copytree(*outputs)
    web.ill = False
    finish(start(run(outputs[0], "--retry-failed")))
    state = JobState(outputs[1])
    for name in ("plan.json", "drops.parquet", "manifest.json", ".work"):
        process = start(run(outputs[1], "--retry-failed"), name)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if name == "plan.json":
            kill_when(
                start(run(outputs[1], "--retry-failed")), lambda: list(state.work.glob("unit-*"))
            )
    finish(start(run(outputs[1], "--retry-failed")))
    same(outputs[1], outputs[0])
