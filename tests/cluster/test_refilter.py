"""Filtering shards on a Ray of its own, and after a SIGKILL, gives what one process gives."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etl.digits.records import pair_sample
from etl.storage.manifest import read_manifest
from etl.storage.shards import write_folder
from tests.cluster.ray_cluster import ROOT, marked

pytestmark = pytest.mark.cluster


def command(shards: Path, output: Path, *words: str) -> list[str]:
    named = ("--input", str(shards), "--output", str(output), "--max-caption", "40")
    return [sys.executable, "etl/refilter.py", *named, *words]


def test_ray_and_a_killed_run_give_the_same_shards(tmp_path: Path) -> None:
    samples = (pair_sample(0, row) for row in range(400))
    shards = write_folder(tmp_path / "shards", samples, job="worlds", rows_per_shard=8)
    alone, on_ray, killed = (tmp_path / name for name in ("alone", "ray", "killed"))
    subprocess.run(command(shards, alone), cwd=ROOT, check=True, timeout=120)
    assert 0 < read_manifest(alone).rows < 400
    subprocess.run(command(shards, on_ray, "--ray"), cwd=ROOT, check=True, timeout=120)
    with marked(dict(os.environ)) as env:
        process = subprocess.Popen(command(shards, killed), cwd=ROOT, env=env)
        while not list(killed.glob("shard-*.arrow")):
            assert process.poll() is None
            time.sleep(0.001)  # a file's appearance is no event that could be awaited
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(shards, killed), cwd=ROOT, check=True, timeout=120)
    for output in (on_ray, killed):
        assert read_manifest(output) == read_manifest(alone)
        for shard in read_manifest(alone).shards:
            assert (output / shard.path).read_bytes() == (alone / shard.path).read_bytes()
