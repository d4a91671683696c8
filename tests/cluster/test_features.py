"""The feature cache under ZeRO-3 on two ranks, and the Ray job that makes it, killed."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from etl.digits.records import pair_sample
from etl.storage.shards import ShardSet, write_folder
from model.presets import system
from pipeline.config.run_config import Scale, TrainOptions, resolve
from pipeline.feature_cache.distinct_media import distinct_media
from pipeline.feature_cache.feature_file import FeatureFile
from pipeline.feature_cache.precompute import plan_ranges
from pipeline.feature_cache.store import feature_stores
from pipeline.feature_cache.worker import PrecomputeWorker
from tests.cluster.ranks import TIMEOUT_S, Outcome, Ranks, losses, run_ranks
from tests.cluster.ray_cluster import RayHead, marked
from tests.cluster.test_elastic import stop_after
from tests.cluster.warm import REPOSITORY, WarmProcess
from tests.worlds import caption_shards, generation_shards, generative_overrides

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STEPS = 8
ROWS = 40
SMALL = ("--global-batch", 8, "--micro-batch", 2, "--max-steps", STEPS, "--epochs", 2)
CLOSE = 1e-6
"""Relative, in float32: under ZeRO-3 DeepSpeed adds the bias of a linear layer by itself, so that
the encoder's last bits differ from those of the job."""
SLOW = ("--learning-rate", 3e-4)
"""A large learning rate would amplify such bits from step to step."""


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
    return ["pt", "digits", "--data", captions, "--output", run, *SMALL, *SLOW, *more]


def with_cache(captions: Path, run: Path, cache: Path) -> list[object]:
    return words(captions, run, "--feature-cache", cache)


def checked(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.stderr
    return outcome


def precomputed(data: list[Path], cache: Path, *settings: str, scale: Scale = "full") -> Path:
    """Make the complete cache of data, as the Ray job's plan and one of its workers do."""
    options = TrainOptions(
        preset="digits", data=tuple(data), output=cache, scale=scale, set=settings
    )
    run = resolve(options, "pt")
    worker = PrecomputeWorker(run, None, batch=4, threads=1, device="cpu")
    stores = feature_stores(cache, worker.encoder_ids)
    for store in stores.values():
        store.create()
    outputs = run.settings.output_branches(run.system.model)
    media = distinct_media(ShardSet(data), run.system.model, outputs, stores)
    for item in plan_ranges(media, stores, 16)[1]:
        worker(item)
    return cache


@pytest.fixture(scope="module")
def cache(captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precomputed([captions], tmp_path_factory.mktemp("cache"))


def test_features_give_the_losses_of_the_encoder(
    captions: Path, plain: list[float], cache: Path, tmp_path: Path
) -> None:
    """And a run that is stopped resumes with them."""
    before = contents(cache)
    run = tmp_path / "run"
    command = with_cache(captions, run, cache)
    ranks = Ranks(2, command)
    stop_after(3, run, ranks)
    assert ranks.wait().code == 75
    outcome = checked(run_ranks(2, *command))
    assert f"features of image: {ROWS} from {cache}" in outcome.stderr
    assert losses(run) == pytest.approx(plain, rel=CLOSE)
    assert contents(cache).keys() == before.keys()


def test_targets_of_generated_media_are_read_too(tmp_path: Path) -> None:
    """In a mix in which a micro-batch of a rank may lack images, or images to be generated.

    The UNet is recomputed. A run that is stopped resumes on another number of ranks.
    """
    generated = generation_shards(tmp_path / "generated", 12)
    inputs = caption_shards(tmp_path / "inputs", 12)
    settings = ["pt.max_tokens=256", "pt.recompute=true"]
    settings += generative_overrides(system("digits").tiny())
    command = ["pt", "digits", "--scale", "tiny", "--data", generated, inputs, *SMALL, *SLOW]
    command += ["--set", *settings]
    runs = {name: tmp_path / name for name in ("plain", "cached")}
    checked(run_ranks(2, *command, "--output", runs["plain"]))
    cache = precomputed([inputs, generated], tmp_path / "cache", *settings, scale="tiny")
    roles = {json.loads(path.read_text())["role"] for path in cache.glob("*/encoder.json")}
    assert roles == {"encoder", "text", "latents"}
    command += ["--output", runs["cached"], "--feature-cache", cache]
    ranks = Ranks(2, command)
    stop_after(3, runs["cached"], ranks)
    assert ranks.wait().code == 75
    outcome = checked(run_ranks(1, *command))
    assert "features of to_image: 12 from" in outcome.stderr
    assert "features of to_image.latents: 12 from" in outcome.stderr
    assert losses(runs["cached"]) == pytest.approx(losses(runs["plain"]), rel=CLOSE)


def test_an_incomplete_cache_is_one_line_on_all_ranks(
    ray_head: RayHead, cache: Path, tmp_path: Path
) -> None:
    """No rank waits for another, and the command that it names completes the cache."""
    more = caption_shards(tmp_path / "more", ROWS + 3)
    run, copied = tmp_path / "run", tmp_path / "cache"
    shutil.copytree(cache, copied)
    (line,) = refusal(with_cache(more, run, copied))
    assert f"lacks features of these data by the run's encoders: 3 of {ROWS + 3} image" in line
    assert not (run / "metrics.jsonl").exists()
    finish(start_job(ray_head, command_in(line)))
    checked(run_ranks(2, *with_cache(more, run, copied), "--max-steps", 1))


def refusal(command: list[object]) -> list[str]:
    """Return rank 0's error lines of a command with which both ranks exit with 2 by themselves."""
    ranks = Ranks(2, command)
    try:
        (_, errors), _ = (process.communicate(timeout=TIMEOUT_S) for process in ranks.processes)
        assert [process.returncode for process in ranks.processes] == [2, 2], errors
    finally:
        ranks.kill()
    return [line for line in errors.splitlines() if line.startswith("error: ")]


def test_an_unreadable_medium_is_a_skipped_sample_as_without_a_cache(tmp_path: Path) -> None:
    samples = [pair_sample(0, number) for number in range(16)]
    data = samples[3].media[0].data[:200]
    medium = replace(samples[3].media[0], data=data, sha256=hashlib.sha256(data).hexdigest())
    samples[3] = replace(samples[3], media=(medium,))
    folder = write_folder(tmp_path / "data", samples, job="test")
    cache = precomputed([folder], tmp_path / "cache")
    runs = {name: tmp_path / name for name in ("plain", "cached")}
    for name, run in runs.items():
        command = words(folder, run, "--max-steps", 2, "--max-bad-fraction", 0.5)
        command += ["--feature-cache", cache] if name == "cached" else []
        checked(run_ranks(2, *command))
    bad = {name: (run / "bad_samples.jsonl").read_text() for name, run in runs.items()}
    assert samples[3].id in bad["plain"]
    assert bad["cached"] == bad["plain"]
    assert losses(runs["cached"]) == pytest.approx(losses(runs["plain"]), rel=CLOSE)


def test_damage_ends_the_run_on_all_ranks_and_is_repaired(
    ray_head: RayHead, captions: Path, plain: list[float], cache: Path, tmp_path: Path
) -> None:
    run, copied = tmp_path / "run", tmp_path / "cache"
    shutil.copytree(cache, copied)
    paths = sorted(copied.glob("*/part-*.arrow"))
    for path in paths:
        file = FeatureFile(path)
        row = file.read(len(file) - 1)
        assert isinstance(row, torch.Tensor)
        damaged = bytearray(path.read_bytes())
        damaged[damaged.index(row.numpy().tobytes())] ^= 0xFF
        path.write_bytes(damaged)
    (line,) = refusal(with_cache(captions, run, copied))
    assert re.search(
        r"damaged \(wrong checksum in row .*makes its features again; then the same", line
    )
    finish(start_job(ray_head, command_in(line)))
    checked(run_ranks(2, *with_cache(captions, run, copied)))
    assert losses(run) == pytest.approx(plain, rel=CLOSE)


def test_an_encoder_that_trains_is_not_cached(captions: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("--set", 'pt.trainable=["inputs.*.projector.*", "inputs.*.encoder.tower.encoder.*"]')
    outcome = run_ranks(2, *with_cache(captions, run, tmp_path / "cache"), *more)
    assert outcome.code == 2
    assert "uses no frozen encoder" in outcome.stderr
    assert not (tmp_path / "cache").exists()


def test_a_job_that_is_killed_and_run_again_gives_the_same_features(
    ray_head: RayHead, captions: Path, cache: Path, tmp_path: Path
) -> None:
    """As those of a worker that nothing has killed."""
    command = ["features", "digits", "--data", str(captions)]
    command += ["--media-per-file", "4", "--batch", "4", "--output"]
    killed = tmp_path / "killed"
    with marked(ray_head.env) as env:
        process = start_job(ray_head, [*command, str(killed)], env)
        while len(list(killed.glob("*/part-*.arrow"))) < 3:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
                raise AssertionError(process.communicate()[1])
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    before = contents(killed)
    assert 3 <= len(before) // 4 <= ROWS // 4
    finish(start_job(ray_head, [*command, str(killed)]))
    after = contents(killed)
    assert all(torch.equal(after[key], features) for key, features in before.items())
    expected = contents(cache)
    assert after.keys() == expected.keys()
    assert len(after) == ROWS
    assert all(torch.equal(after[key], features) for key, features in expected.items())


def start_job(
    ray_head: RayHead, command: list[str], env: dict[str, str] | None = None
) -> WarmProcess:
    """Start `python -m pipeline features …` on the cluster."""
    address = {"RAY_ADDRESS": ray_head.address, "PYTHONPATH": str(REPOSITORY)}
    return WarmProcess("pipeline", command, (env or ray_head.env) | address)


def command_in(message: str) -> list[str]:
    """Return the arguments of the command that an error message names."""
    (command,) = re.findall("`python -m pipeline (features .*)`", message)
    return str(command).split()


def finish(process: WarmProcess) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def contents(cache: Path) -> dict[bytes, torch.Tensor]:
    parts = [FeatureFile(path) for path in cache.glob("*/part-*.arrow")]
    return {part.key(row): part.read(row) for part in parts for row in range(len(part))}
