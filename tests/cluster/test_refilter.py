"""Filtering shards on a Ray cluster, and after a SIGKILL, gives what local processes give."""

from pathlib import Path

import pytest

from etl.digits.records import pair_sample
from etl.storage.manifest import read_manifest
from etl.storage.shards import write_folder
from tests.cluster.etl_jobs import Drivers

pytestmark = pytest.mark.cluster


def test_ray_and_a_killed_run_give_the_same_shards(drivers: Drivers, tmp_path: Path) -> None:
    samples = (pair_sample(0, row) for row in range(160))
    shards = write_folder(tmp_path / "shards", samples, job="worlds", rows_per_shard=8)
    alone, on_ray, killed = (tmp_path / name for name in ("alone", "ray", "killed"))

    def words(output: Path, *more: str) -> list[object]:
        return ["--input", shards, "--output", output, "--max-caption", "40", *more]

    drivers.run("refilter", words(alone, "--executor", "local"))
    assert 0 < read_manifest(alone).rows < 160
    drivers.run("refilter", words(on_ray))
    drivers.start("refilter", words(killed)).kill_when(lambda: list(killed.glob("shard-*.arrow")))
    drivers.run("refilter", words(killed))
    for output in (on_ray, killed):
        assert read_manifest(output) == read_manifest(alone)
        for shard in read_manifest(alone).shards:
            assert (output / shard.path).read_bytes() == (alone / shard.path).read_bytes()
