"""Media that crash or hang their decoder: a row with a reason each, and all other rows kept."""

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from etl.download.base import Fetched
from etl.media.gather import CheckedMedium, MediumKey, check_medium
from etl.runtime import job as jobs
from etl.runtime.corpus import CorpusOptions
from etl.runtime.executor import ExecutorName, open_executor
from etl.runtime.isolation import CrashedError, Deadline, IsolatedCalls
from etl.runtime.job import Job, run_job
from etl.runtime.worker import DownloadWorker, WorkerSpec
from etl.runtime.worker_pool import ExecutorError, WorkerPool
from etl.sources.base import Format, RecordReader, pair
from etl.sources.files import json_lines
from etl.storage.manifest import read_manifest
from etl.storage.schema import sha256
from etl.storage.shards import read_samples
from tests.etl.download.web import photo

PHOTOS = [photo(seed=seed) for seed in range(8)]
SEGFAULT, HANG, RAISE = (sha256(PHOTOS[number]) for number in (2, 5, 6))


def segfault(*_: object) -> None:
    """Read address 0: a real segmentation fault, as a decoder's bug causes it."""
    ctypes.string_at(0)


def hang(*_: object) -> None:
    """Do not return, and hold the interpreter's lock."""
    ctypes.PyDLL(None).pause()


def check(key: MediumKey, fetched: Fetched, *limits: object) -> CheckedMedium:
    """Check a medium as jobs do, with a decoder that has bugs."""
    digest = sha256(fetched.data)
    if digest == SEGFAULT:
        segfault()
    if digest == HANG:  # what a deadline does, without the wait
        signal.raise_signal(signal.SIGALRM)
    if digest == RAISE:
        limits = (None, None, None)
    return check_medium(key, fetched, *limits)


class BuggyWorker(DownloadWorker):
    """A worker whose decoder has bugs."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(dataclasses.replace(spec, check=check))


def run_buggy_job(
    folder: Path, output: Path, *, pictures: int = len(PHOTOS), executor: ExecutorName = "local"
) -> None:
    """Run a job over the first pictures, in units of four."""
    media = folder / "media"
    if not media.exists():
        media.mkdir()
        for number, data in enumerate(PHOTOS[:pictures]):
            (media / f"{number}.jpg").write_bytes(data)
        names = [json.dumps(f"{number}.jpg") for number in range(pictures)]
        (folder / "list.jsonl").write_text("\n".join(names))
    fmt = Format(
        suffixes=(".jsonl",),
        rows=json_lines,
        parse=lambda name: [pair("image", name, f"picture {name}")],
    )
    options = CorpusOptions(
        input=folder / "list.jsonl",
        output=output,
        media=(str(media),),
        rows_per_shard=4,
        workers=2,
        executor=executor,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "DownloadWorker", BuggyWorker)
        run_job(
            Job(
                name="buggy",
                source=RecordReader("buggy", options.input, fmt),
                filters=options.filters(),
                identity="medium",
                options=options,
                media=options.media_options,
            )
        )


def files(folder: Path) -> dict[str, bytes]:
    names = ("manifest.json", "drops.parquet", "keys.parquet")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in names} | {
        path.name: path.read_bytes() for path in folder.glob("*.arrow")
    }


RAY = pytest.param("ray", marks=[pytest.mark.cluster, pytest.mark.nightly(minutes=1)])


@pytest.mark.parametrize("executor", ["local", RAY])
def test_media_that_crash_hang_or_raise_are_rows_with_a_reason(
    executor: ExecutorName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    output = tmp_path / "out"
    run_buggy_job(tmp_path, output, executor=executor)
    manifest = read_manifest(output)
    assert manifest.drops == {"decoder_crashed": 2, "decoder_error": 1}
    kept = [sample.lineage["file"] for sample in read_samples(output, manifest, 10)]
    assert kept == ["0.jpg", "1.jpg", "3.jpg", "4.jpg", "7.jpg"]
    drops = pq.read_table(output / "drops.parquet").to_pylist()
    assert [(drop["url"], drop["detail"]) for drop in drops] == [
        ("2.jpg", "SIGSEGV"),
        ("5.jpg", "it took more than 300 s"),
        ("6.jpg", "AttributeError: 'NoneType' object has no attribute 'image_size'"),
    ]
    page = (output / "report.html").read_text()
    assert "decoder_crashed" in page
    assert "2.jpg" in page


def die_after_one_unit(folder: Path, output: Path) -> None:
    """Run the job in this process, which is killed when the first unit is done."""
    whole = WorkerPool.map_unordered

    def map_unordered(*args: object) -> object:
        for _ in whole(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        yield

    WorkerPool.map_unordered = map_unordered
    run_buggy_job(folder, output, pictures=5)


def test_a_job_with_crashing_media_that_is_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    run_buggy_job(tmp_path, tmp_path / "whole", pictures=5)
    assert read_manifest(tmp_path / "whole").drops == {"decoder_crashed": 1}
    output = tmp_path / "killed"
    paths = [str(tmp_path), str(output)]
    code = f"from {__name__} import *; die_after_one_unit(*map(Path, {paths}))"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list((output / ".work").glob("unit-*"))) == 1
    run_buggy_job(tmp_path, output, pictures=5)
    assert files(output) == files(tmp_path / "whole")


def fork_of(code: int) -> None:
    os._exit(code)


def loud(text: str) -> str:
    os.write(1, text.encode())
    return text


def killed_once(marker: Path) -> bool:
    """As if other processes had taken all memory once."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def test_calls_are_isolated_from_one_another(tmp_path: Path) -> None:
    with IsolatedCalls(seconds=300) as call:
        assert call(loud, "what libraries print is not in the way") == (
            "what libraries print is not in the way"
        )
        with pytest.raises(CrashedError, match="SIGSEGV"):
            call(segfault)
        with pytest.raises(CrashedError, match="exit code 7"):
            call(fork_of, 7)
        assert call(killed_once, tmp_path / "marker")
        pids = {call(os.getpid) for _ in range(3)}
        assert len(pids) == 3
        assert call(len, bytes(5 << 20)) == 5 << 20


def test_a_call_that_hangs_is_ended() -> None:
    with IsolatedCalls(seconds=0.2) as call, pytest.raises(CrashedError, match=r"more than 0\.2 s"):
        call(hang)


class Hangs:
    """Hangs in its second block, of which two are running."""

    def __init__(self) -> None:
        self.deadline = Deadline(0.2)

    def __call__(self, _: int) -> None:
        with self.deadline():
            pass
        with self.deadline(), self.deadline():
            hang()


def test_a_worker_that_hangs_ends_itself() -> None:
    with (
        open_executor("local") as executor,
        executor.pool(1, cpus=0.5) as pool,
        pytest.raises(ExecutorError, match="4 workers died on the same item, the last by SIGALRM"),
    ):
        list(pool.map_unordered("hangs", Hangs, [0]))
