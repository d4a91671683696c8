"""A job with a model that judges its pairs: its scores, its drops, and going on after a kill."""

import statistics
from pathlib import Path

import pytest
import torch

from etl.filters.clip import ClipModel, ClipSpec
from etl.runtime.job_state import JobState
from etl.runtime.scores import scores_path
from etl.storage.manifest import read_manifest
from etl.storage.shards import ShardSet
from tests.cluster.etl_jobs import Drivers
from tests.cluster.ray_cluster import DigitsWeb
from tests.etl.filters.tiny_clip import save_tiny_clip

pytestmark = pytest.mark.cluster


def expected_scores(shards: Path, model: Path) -> dict[str, float]:
    """What the model says of every pair of a folder of shards, by the samples' ids."""
    found = ShardSet([shards])
    samples = [found[number] for number in range(len(found))]
    pairs = [(sample.media[0].data, sample.turns[1].text) for sample in samples]
    clip = ClipModel(
        ClipSpec(model=str(model), min_score=None), cuda=False, threads=torch.get_num_threads()
    )
    return dict(zip((sample.id for sample in samples), clip.similarities(pairs), strict=True))


def test_a_model_judges_what_was_downloaded(
    drivers: Drivers, digits_web: DigitsWeb, laion_shards: Path, tmp_path: Path
) -> None:
    model = save_tiny_clip(tmp_path / "model")
    expected = expected_scores(laion_shards, model)
    least = statistics.median(expected.values())
    output = tmp_path / "shards"
    words = ["--input", digits_web.folder / "laion.parquet", "--output", output]
    words += ["--allow-private-addresses", "--rows-per-shard", "16"]
    words += ["--clip-model", model, "--min-clip", least, "--clip-device", "cpu"]
    state = JobState(output)

    def judged() -> dict[Path, int]:
        paths = [scores_path(state, number) for number in range(16)]
        return {path: path.stat().st_mtime_ns for path in paths if path.exists()}

    drivers.start("laion", words).kill_when(judged)
    before = judged()
    job = drivers.start("laion", words)
    job.wait_until((output / "shard-00000.arrow").exists)
    after = judged()
    assert all(after.get(path, time) == time for path, time in before.items())  # not judged again
    job.finish()

    found = ShardSet([output])
    kept = {found[number].id: found[number].scores["clip"] for number in range(len(found))}
    low = {name for name, value in expected.items() if value < least}
    manifest = read_manifest(output)
    assert manifest.drops["clip_too_low"] >= len(low)  # and duplicates that come after one of them
    assert set(expected) - low <= set(kept)
    assert all(value >= least for value in kept.values())
    assert {name: kept[name] for name in expected if name in kept} == pytest.approx(
        {name: value for name, value in expected.items() if name in kept}, abs=1e-5
    )
    steps = [told["step"] for told in manifest.details["yields"]]
    assert steps[-2:] == ["clip", "dedup"]
