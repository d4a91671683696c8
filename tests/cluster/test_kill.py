"""Nothing lost, nothing twice: a job, its workers and its nodes are killed, and it goes on.

The digits world is served from this process, so that a test knows when a download is under way, and
can hold it there.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from etl.digits.faults import WorldSize
from etl.digits.lists import write_lists, write_media
from etl.runtime.job_state import JobState
from etl.storage.manifest import read_manifest
from etl.storage.shards import ShardSet
from tests.cluster.etl_jobs import Drivers, EtlJob
from tests.cluster.ray_cluster import BIN, ROOT, RayHead, free_ports, running
from tests.etl.download.web import Handler, Web, served

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

WORLD = WorldSize(captions=200, dialogues=1, questions=1, seed=0)
RANGES = 8


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


Start = Callable[..., EtlJob]


@pytest.fixture(params=["local", "ray"])
def executor(request: pytest.FixtureRequest) -> str:
    """Where the workers run."""
    return request.param


@pytest.fixture
def start(drivers: Drivers, executor: str) -> Start:
    """Starts the job with some words; see `Drivers.start`."""

    def start(words: Sequence[str], dies_before: str | None = None) -> EtlJob:
        return drivers.start("laion", [*words, "--executor", executor], dies_before=dies_before)

    return start


def words(web: Web, output: Path, *more: str) -> list[str]:
    return [
        *("--input", str(web.folder / "laion.parquet"), "--output", str(output)),
        *("--allow-private-addresses", "--rows-per-shard", "32", "--timeout", "60"),
        *("--json", *more),
    ]


@pytest.fixture(scope="module")
def whole(web: Web, drivers: Drivers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the job leaves that nobody interrupts."""
    output = tmp_path_factory.mktemp("whole") / "shards"
    drivers.start("laion", words(web, output)).finish()
    manifest = read_manifest(output)
    assert len(manifest.shards) == RANGES
    assert manifest.rows == WORLD.captions
    return output


def names(folder: Path) -> set[str]:
    """What a job left: all but the stamps of those who have compared the checksums since."""
    return {path.name for path in folder.iterdir()} - {".verified"}


def same(output: Path, whole: Path) -> None:
    """The same bytes, and nothing beside them."""
    assert read_manifest(output) == read_manifest(whole)
    ShardSet([output])  # compares every shard's sha256 with the manifest
    assert names(output) == names(whole)
    drops = "drops.parquet"
    assert (output / drops).read_bytes() == (whole / drops).read_bytes()


@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 5), pytest.param(12, 3, marks=pytest.mark.nightly)]
)
def test_killed_at_random_instants(
    start: Start, web: Web, whole: Path, tmp_path: Path, kills: int, seed: int
) -> None:
    instants = random.Random(seed)
    ended = 0
    while kills:
        output = tmp_path / f"shards-{ended}"
        job = start(words(web, output))
        job.process.join(instants.uniform(0.3, 4))
        if job.kill():
            kills -= 1
        else:
            same(output, whole)
            ended += 1
    start(words(web, output)).finish()
    same(output, whole)


def test_killed_in_every_stage(start: Start, held: Web, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    state = JobState(output)
    todo = words(held, output)

    for name in ("candidates.arrow", "plan.json"):
        start(todo, name).dies()
    assert not state.saved_plan()
    start(todo).kill_when(held.held.is_set)  # in mid-download
    done = len(list(state.work.glob("unit-*")))
    assert done < RANGES
    held.gate.set()
    start(todo).kill_when(lambda: len(list(state.work.glob("unit-*"))) == RANGES)
    assert not list(output.glob("*.arrow"))  # so duplicates were not yet decided
    start(todo).kill_when(lambda: list(state.work.glob("final-*")))
    for name in ("drops.parquet", "report.html", "manifest.json", ".work"):
        start(todo, name).dies()
    assert read_manifest(output) == read_manifest(whole)  # killed as it cleared up
    start(todo).finish()
    same(output, whole)


def test_a_second_run_does_nothing(web: Web, whole: Path) -> None:
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


def workers(head: RayHead, executor: str) -> list[tuple[int, str]]:
    """Pid and node of every worker; asks the cluster, or this machine."""
    if executor == "local":
        found = []
        for path in Path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                ours = head.address in (path.parent / "environ").read_text(errors="replace")
                if ours and path.read_text() == "mmloom-worker\n":
                    found.append((int(path.parent.name), "local"))
        return found
    alive = "filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
    found = head.ask(f"v0/actors?detail=1&{alive}")["data"]["result"]["result"]
    return [(one["pid"], one["node_id"]) for one in found if one["class_name"] == "Functions"]


def test_a_worker_dies(
    start: Start, executor: str, held: Web, ray_head: RayHead, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    job = start(words(held, output))
    assert held.held.wait(60)
    pid, _ = workers(ray_head, executor)[0]
    os.kill(pid, signal.SIGKILL)
    held.gate.set()
    job.finish()
    same(output, whole)


@pytest.mark.parametrize("executor", ["ray"])
def test_a_node_dies(
    start: Start, executor: str, held: Web, ray_head: RayHead, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    command = [str(BIN / "ray"), "start", "--block", f"--address={ray_head.address}"]
    command += ["--node-ip-address=127.0.0.1", "--num-cpus=2", "--object-store-memory=100000000"]
    with running(command, ready="Ray runtime started", env=ray_head.env):
        job = start(words(held, output, "--workers", "4"))
        assert held.held.wait(60)
        job.wait_until(lambda: len({node for _, node in workers(ray_head, executor)}) == 2)
    # All processes of the node were killed.
    held.gate.set()
    job.finish()
    same(output, whole)


@pytest.mark.parametrize("executor", ["local"])
def test_a_retry_is_killed(start: Start, web: Web, tmp_path: Path) -> None:
    def run(output: Path, *more: str) -> list[str]:
        return words(web, output, "--retries", "0", *more)

    outputs = tmp_path / "whole", tmp_path / "killed"
    web.ill = True
    start(run(outputs[0])).finish()
    assert read_manifest(outputs[0]).drops["http_503"] > 20
    shutil.copytree(*outputs)
    web.ill = False
    start(run(outputs[0], "--retry-failed")).finish()
    state, again = JobState(outputs[1]), run(outputs[1], "--retry-failed")
    for name in ("plan.json", "drops.parquet", "manifest.json", ".work"):
        start(again, name).dies()
        if name == "plan.json":
            start(again).kill_when(lambda: list(state.work.glob("unit-*")))
    start(again).finish()
    same(outputs[1], outputs[0])
