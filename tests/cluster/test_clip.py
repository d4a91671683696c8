"""A job with a model that judges its pairs: its scores, its drops, and going on after a kill."""

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etl.runtime.job_state import JobState
from etl.runtime.scores import scores_path
from etl.storage.manifest import read_manifest
from etl.storage.shards import ShardSet
from tests.cluster.ray_cluster import ROOT, DigitsWeb, marked, serve_digits
from tests.etl.filters.tiny_clip import save_tiny_clip

pytestmark = pytest.mark.cluster


def laion(web: DigitsWeb, output: Path, model: Path, least: float) -> list[str]:
    return [
        *(sys.executable, "etl/laion.py", "--input", str(web.folder / "laion.parquet")),
        *("--output", str(output), "--allow-private-addresses", "--rows-per-shard", "16"),
        *("--clip-model", str(model), "--min-clip", str(least), "--clip-device", "cpu"),
    ]


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def scores(folder: Path) -> dict[str, float]:
    found = ShardSet([folder])
    return {found[n].id: found[n].scores["clip"] for n in range(len(found))}


def test_a_model_judges_what_was_downloaded(tmp_path: Path) -> None:
    model = save_tiny_clip(tmp_path / "model")
    with serve_digits(tmp_path / "web", captions=96, dialogues=2) as web:
        everything = tmp_path / "all"
        run(laion(web, everything, model, -1.0))
        found = scores(everything)
        least = statistics.median(found.values())
        output = tmp_path / "killed"
        command = laion(web, output, model, least)
        state = JobState(output)
        with marked(dict(os.environ)) as env:
            process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
            while not (done := [n for n in range(6) if scores_path(state, n).exists()]):
                assert process.poll() is None
                time.sleep(0.02)  # a file's appearance is no event that could be awaited
            process.send_signal(signal.SIGKILL)
            process.wait()
        judged = scores_path(state, done[0]).stat().st_mtime_ns
        with marked(dict(os.environ)) as env:
            process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
            while not (output / "shard-00000.arrow").exists():
                assert process.poll() is None
                time.sleep(0.005)
            path = scores_path(state, done[0])
            assert not path.exists() or path.stat().st_mtime_ns == judged  # not judged again
            assert process.wait() == 0
    kept = scores(output)
    low = {name for name, value in found.items() if value < least}
    manifest = read_manifest(output)
    assert manifest.drops["clip_too_low"] >= len(low)  # and duplicates that come after one of them
    assert set(found) - low <= set(kept)
    assert all(value >= least for value in kept.values())
    assert {name: kept[name] for name in found if name in kept} == pytest.approx(
        {name: value for name, value in found.items() if name in kept}, abs=1e-5
    )
    steps = [told["step"] for told in manifest.details["yields"]]
    assert steps[-2:] == ["clip", "dedup"]
