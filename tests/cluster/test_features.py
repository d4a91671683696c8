"""The feature cache under ZeRO-3 on two ranks, and the Ray job that fills it, killed."""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from model.build import build_tokenizer
from model.presets import system
from pipeline.config.run_config import RunConfig, TrainOptions, resolve
from pipeline.data.sampler import BatchSampler, build_sampler
from pipeline.feature_cache.feature_file import FeatureFile
from pipeline.feature_cache.store import FeatureStore
from pipeline.feature_cache.worker import MediaRange, PrecomputeWorker
from tests.cluster.ranks import Outcome, Ranks, losses, run_ranks
from tests.cluster.ray_cluster import RayHead, marked
from tests.cluster.test_elastic import stop_after
from tests.cluster.warm import REPOSITORY, WarmProcess
from tests.worlds import caption_shards, generation_shards, generative_overrides

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STEPS = 8
ROWS = 40
SMALL = ("--global-batch", 8, "--micro-batch", 2, "--max-steps", STEPS, "--epochs", 2)
CLOSE = 1e-6
"""Relative, in float32: an encoder that gets other media together may round otherwise."""


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_shards(tmp_path_factory.mktemp("captions"), ROWS)


@pytest.fixture(scope="module")
def plain(captions: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses without a cache."""
    run = tmp_path_factory.mktemp("plain") / "run"
    outcome = run_ranks(2, *words(captions, run))
    assert outcome.code == 0, outcome.stderr
    return losses(run)


def words(captions: Path, run: Path, *more: object) -> list[object]:
    return ["pt", "digits", "--data", captions, "--output", run, *SMALL, *more]


def with_cache(captions: Path, run: Path, cache: Path) -> list[object]:
    return words(captions, run, "--feature-cache", cache, "--feature-cache-mode", "always")


def checked(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.stderr
    return outcome


def fill(captions: Path, cache: Path, rows: list[int]) -> FeatureStore:
    """Put the features of some rows into a cache, as a worker of the Ray job does."""
    options = TrainOptions(preset="digits", data=(captions,), output=cache)
    worker = PrecomputeWorker(resolve(options, "pt"), None, batch=4, threads=1, device="cpu")
    store = FeatureStore(cache, worker.encoder_ids["image"])
    store.create()
    worker(MediaRange(kind="image", media_k2=np.array([[row, 0] for row in rows])))
    assert len(store) == len(rows)
    return store


def schedule_of(captions: Path, output: Path) -> BatchSampler:
    options = TrainOptions(
        preset="digits",
        data=(captions,),
        output=output,
        global_batch=8,
        micro_batch=2,
        max_steps=STEPS,
        epochs=2,
    )
    run: RunConfig = resolve(options, "pt")
    return build_sampler(run, build_tokenizer(run.system.model, weights=run.weights))


def rows_of(schedule: BatchSampler, step: int, rank: int) -> set[int]:
    return {place.row for turn in schedule.step(step, 2) for place in turn[rank]}


def test_ranks_with_hits_beside_ranks_with_misses_learn_the_same(
    captions: Path, plain: list[float], tmp_path: Path
) -> None:
    """In the first steps one rank knows its media and the other does not, then it is the other way
    round; in one nobody has anything to encode, and later everybody."""
    schedule = schedule_of(captions, tmp_path / "schedule")
    first = rows_of(schedule, 0, 0) | rows_of(schedule, 1, 1)
    everyone = rows_of(schedule, 2, 0) | rows_of(schedule, 2, 1)
    nobody = set.union(*(rows_of(schedule, step, rank) for step in (3, 4) for rank in (0, 1)))
    assert not (first | everyone) & nobody
    assert not first & (rows_of(schedule, 0, 1) | rows_of(schedule, 1, 0))
    store = fill(captions, tmp_path / "cache", sorted(first | everyone))
    run = tmp_path / "run"
    checked(run_ranks(2, *with_cache(captions, run, tmp_path / "cache")))
    assert losses(run) == pytest.approx(plain, rel=CLOSE)
    # What was missing has been kept: now nobody decodes or encodes anything.
    assert len(store) >= ROWS
    assert distinct(store) == ROWS
    files = sorted(store.folder.glob("part-*.arrow"))
    again = tmp_path / "again"
    checked(run_ranks(2, *with_cache(captions, again, tmp_path / "cache")))
    assert losses(again) == pytest.approx(plain, rel=CLOSE)
    assert sorted(store.folder.glob("part-*.arrow")) == files
    assert "feature cache" in (again / "report.html").read_text().lower()


def test_what_generators_are_told_is_kept_too(tmp_path: Path) -> None:
    """A rank that knows a text beside one that does not, then both: the losses stay the same."""
    drawn = generation_shards(tmp_path / "drawn", 12)
    shown = caption_shards(tmp_path / "shown", 12)
    settings = generative_overrides(system("digits").tiny())
    command = ["pt", "digits", "--scale", "tiny", "--data", drawn, shown, *SMALL]
    command += ["--set", "pt.max_tokens=256", *settings]
    runs = {name: tmp_path / name for name in ("plain", "first", "second")}
    checked(run_ranks(2, *command, "--output", runs["plain"]))
    cache = ("--feature-cache", tmp_path / "cache", "--feature-cache-mode", "always")
    for name in ("first", "second"):
        outcome = checked(run_ranks(2, *command, "--output", runs[name], *cache))
        assert "features of to_image: used" in outcome.stderr
        assert losses(runs[name]) == pytest.approx(losses(runs["plain"]), rel=CLOSE)
    kept = {
        json.loads((path / "encoder.json").read_text())["role"]: sorted(path.glob("part-*.arrow"))
        for path in (tmp_path / "cache").iterdir()
    }
    assert set(kept) == {"encoder", "text"}
    texts = {
        FeatureFile(path).key(row) for path in kept["text"] for row in range(len(FeatureFile(path)))
    }
    assert 1 < len(texts) <= 12


def distinct(store: FeatureStore) -> int:
    parts = [FeatureFile(path) for path in store.folder.glob("part-*.arrow")]
    return len({part.key(row) for part in parts for row in range(len(part))})


def test_a_run_that_is_stopped_goes_on_with_what_it_has_kept(
    captions: Path, plain: list[float], tmp_path: Path
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    command = with_cache(captions, run, cache)
    ranks = Ranks(2, command)
    stop_after(3, run, ranks)
    assert ranks.wait().code == 75
    assert list(cache.glob("*/part-*.arrow"))
    checked(run_ranks(2, *command))
    assert losses(run) == pytest.approx(plain, rel=CLOSE)


def test_the_measurement_decides_and_is_told(captions: Path, plain: list[float], tmp_path: Path):
    run = tmp_path / "run"
    outcome = checked(run_ranks(2, *words(captions, run, "--feature-cache", tmp_path / "cache")))
    (line,) = [one for one in outcome.stderr.splitlines() if "features of image" in one]
    assert "decoding" in line
    assert "reading" in line
    assert losses(run) == pytest.approx(plain, rel=CLOSE)
    assert "decoding" in (run / "feature_cache.json").read_text()


def test_an_encoder_that_trains_is_left_alone(captions: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("--set", 'pt.trainable=["inputs.*.projector.*", "inputs.*.encoder.tower.encoder.*"]')
    command = [*with_cache(captions, run, tmp_path / "cache"), *more, "--max-steps", 1]
    outcome = checked(run_ranks(2, *command))
    assert "not cached, since the encoder is trained in this stage" in outcome.stderr
    assert not list((tmp_path / "cache").glob("*"))


def test_a_fill_that_is_killed_and_run_again_gives_the_same_features(
    ray_head: RayHead, captions: Path, tmp_path: Path
) -> None:
    command = ["features", "digits", "--data", str(captions)]
    command += ["--media-per-file", "4", "--batch", "4", "--output"]

    def start(output: Path, env: dict[str, str]) -> WarmProcess:
        environment = {**env, "RAY_ADDRESS": ray_head.address, "PYTHONPATH": str(REPOSITORY)}
        return WarmProcess("pipeline", [*command, str(output)], environment)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, ray_head.env))
    with marked(ray_head.env) as env:
        process = start(killed, env)
        while len(list(killed.glob("*/part-*.arrow"))) < 3:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
                raise AssertionError(process.communicate()[1])
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    before = contents(killed)
    assert 3 <= len(before) // 4 <= ROWS // 4
    finish(start(killed, ray_head.env))
    after = contents(killed)
    assert all(torch.equal(after[key], features) for key, features in before.items())
    expected = contents(whole)
    assert after.keys() == expected.keys()
    assert len(after) == ROWS
    assert all(torch.equal(after[key], features) for key, features in expected.items())


def finish(process: WarmProcess) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def contents(cache: Path) -> dict[bytes, torch.Tensor]:
    parts = [FeatureFile(path) for path in cache.glob("*/part-*.arrow")]
    return {part.key(row): part.read(row) for part in parts for row in range(len(part))}
