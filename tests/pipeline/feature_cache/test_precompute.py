"""The precompute job in local processes: its plan, a worker's result, the stores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from etl.cli import UserError
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet, write_folder
from model.build import build, preprocess
from model.presets import system
from pipeline.config.run_config import RunConfig, TrainOptions, resolve
from pipeline.data.readers import read_medium
from pipeline.feature_cache.precompute import MediaCount, plan_ranges, precompute
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.store import FeatureStore
from pipeline.feature_cache.worker import (
    MediaRange,
    PrecomputeWorker,
    RangeResult,
    frozen_encoders,
)
from tests.worlds import preset_shards


@pytest.fixture
def data(tmp_path: Path, captions: ShardSet) -> Path:
    """Ten images: one comes three times, one is broken, and one has no digest."""
    samples = [captions[number] for number in range(10)]
    samples[3], samples[7] = samples[0], samples[0]
    samples[5] = changed(samples[5], data=samples[5].media[0].data[:200], sha256="0" * 64)
    samples[6] = changed(samples[6], sha256="")
    return write_folder(tmp_path / "data", samples, job="test")


def changed(sample: Sample, **fields: object) -> Sample:
    return replace(sample, media=(replace(sample.media[0], **fields),))


@pytest.fixture
def run(data: Path, tmp_path: Path) -> RunConfig:
    options = TrainOptions(preset="digits", data=(data,), output=tmp_path / "features")
    return resolve(options, "pt")


@pytest.fixture
def worker(run: RunConfig) -> PrecomputeWorker:
    return PrecomputeWorker(run, None, batch=3, threads=2, device="cpu")


def stores_of(worker: PrecomputeWorker, run: RunConfig) -> dict[str, FeatureStore]:
    stores = {}
    for kind, encoder_id in worker.encoder_ids.items():
        stores[kind] = FeatureStore(Path(run.output), encoder_id)
        stores[kind].create()
    return stores


def planned(
    run: RunConfig, stores: dict[str, FeatureStore], size: int
) -> tuple[dict[str, MediaCount], list[MediaRange]]:
    branches = {kind: run.system.model.input_branch(kind) for kind in stores}
    return plan_ranges(ShardSet([Path(run.data[0])]), branches, (), stores, size)


def encode(worker: PrecomputeWorker, item: MediaRange) -> RangeResult:
    result = worker(item)
    assert isinstance(result, RangeResult)
    return result


def test_each_medium_is_encoded_once_and_only_if_it_is_missing(
    worker: PrecomputeWorker, run: RunConfig
) -> None:
    stores = stores_of(worker, run)
    counts, ranges = planned(run, stores, 3)
    assert counts["image"].distinct == 8
    assert [item.media_k2[:, 0].tolist() for item in ranges] == [[0, 1, 2], [4, 5, 6], [8, 9]]
    result = encode(worker, ranges[1])
    assert (result.encoded, result.cached, result.media) == (2, 0, 3)
    (bad,) = result.unreadable
    assert bad.row == 5
    assert bad.reason == "Truncated File Read"
    # A medium without a digest is read again: only its bytes show that it is cached.
    counts, ranges = planned(run, stores, 3)
    assert counts["image"].cached == 1
    assert [item.media_k2[:, 0].tolist() for item in ranges] == [[0, 1, 2], [5, 6], [8, 9]]
    again = encode(worker, ranges[1])
    assert (again.encoded, again.cached, len(again.unreadable)) == (0, 1, 1)


def test_features_equal_the_model_s(worker: PrecomputeWorker, run: RunConfig) -> None:
    stores = stores_of(worker, run)
    for item in planned(run, stores, 100)[1]:
        encode(worker, item)
    preset = system("digits")
    branch = preset.model.input_branch("image")
    model = build(preset.model, preset.pt, weights="pretrained")
    medium = ShardSet([Path(run.data[0])])[4].media[0]
    values = preprocess(branch.encoder, read_medium(medium, branch))
    with torch.no_grad():
        expected = model.encode("image", values[None])[0]
    found = CacheReader(branches={"image": branch}, stores=stores).find(medium)
    assert found is not None
    assert found.features is not None
    torch.testing.assert_close(found.features, expected, atol=1e-5, rtol=1e-5)


def test_kinds_that_share_an_encoder_share_its_id_and_no_key(tmp_path: Path) -> None:
    preset_shards(tmp_path, rows=2)
    folders = tuple(tmp_path / kind / "pt" for kind in ("image", "video", "audio", "points"))
    options = TrainOptions(preset="digits_omni", data=folders, output=tmp_path / "features")
    config = resolve(options, "pt")
    worker = PrecomputeWorker(config, None, batch=2, threads=1, device="cpu")
    keys = {kind: encoder_id.key for kind, encoder_id in worker.encoder_ids.items()}
    assert keys["image"] == keys["video"]
    assert len(set(keys.values())) == 3
    stores = stores_of(worker, config)
    branches = {kind: config.system.model.input_branch(kind) for kind in stores}
    _, ranges = plan_ranges(ShardSet(list(folders)), branches, (), stores, 100)
    assert [item.kind for item in ranges] == ["image", "video", "audio", "points"]
    assert [encode(worker, item).encoded for item in ranges] == [2, 2, 2, 2]
    assert len(stores["image"]) == 4


ENCODERS_TRAIN = 'pt.trainable=["inputs.*"]'


def test_trained_encoders_are_left_out(data: Path, tmp_path: Path) -> None:
    options = TrainOptions(preset="digits", data=(data,), output=tmp_path, set=(ENCODERS_TRAIN,))
    assert not frozen_encoders(resolve(options, "pt"), None)


def test_the_command_in_local_processes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["digits", "--data", str(data), "--output", str(tmp_path / "f"), "--json"]
    assert precompute([*words, "--media-per-file", "4"]) == 0
    with pytest.raises(UserError, match="stage pt trains all encoders; there is nothing to"):
        precompute([*words, "--set", ENCODERS_TRAIN])
    counts = json.loads(capsys.readouterr().out)["kinds"]["image"]
    assert (counts["distinct"], counts["encoded"], counts["unreadable"]) == (8, 7, 1)
    (written,) = (tmp_path / "f" / counts["encoder"]).glob("unreadable-image-*.json")
    assert [entry["row"] for entry in json.loads(written.read_text())] == [5]
