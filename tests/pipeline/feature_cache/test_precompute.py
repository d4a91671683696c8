"""The precompute job in local processes: its plan, a worker's result, the stores."""

import hashlib
import json
import shutil
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
from pipeline.feature_cache.distinct_media import distinct_media
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
    cut = samples[5].media[0].data[:200]
    samples[5] = changed(samples[5], data=cut, sha256=hashlib.sha256(cut).hexdigest())
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
    worker: PrecomputeWorker, run: RunConfig, size: int
) -> tuple[dict[str, MediaCount], list[MediaRange]]:
    """Return the plan of the job as it is started now."""
    stores = stores_of(worker, run)
    shards = ShardSet([Path(folder) for folder in run.data])
    return plan_ranges(distinct_media(shards, run.system.model, (), stores), stores, size)


def encode(worker: PrecomputeWorker, item: MediaRange) -> RangeResult:
    result = worker(item)
    assert isinstance(result, RangeResult)
    return result


def test_each_medium_is_encoded_once_and_only_if_it_is_missing(
    worker: PrecomputeWorker, run: RunConfig
) -> None:
    """Unreadable ones are not tried again; of one without a digest, the bytes are hashed."""
    counts, ranges = planned(worker, run, 3)
    assert counts["image"].distinct == 8
    assert [item.media_k2[:, 0].tolist() for item in ranges] == [[0, 1, 2], [4, 5, 6], [8, 9]]
    result = encode(worker, ranges[1])
    assert (result.encoded, result.media) == (2, 3)
    assert list(stores_of(worker, run)["image"].unreadable().values()) == ["Truncated File Read"]
    counts, ranges = planned(worker, run, 3)
    assert counts["image"].cached == 3
    assert [item.media_k2[:, 0].tolist() for item in ranges] == [[0, 1, 2], [8, 9]]


def test_a_medium_with_a_wrong_digest_is_unreadable(
    run: RunConfig, data: Path, captions: ShardSet
) -> None:
    """Else the cache would never be complete, or return the features of another medium."""
    shutil.rmtree(data)
    write_folder(data, [captions[1], changed(captions[2], sha256="0" * 64)], job="test")
    worker = PrecomputeWorker(run, None, batch=3, threads=2, device="cpu")
    (item,) = planned(worker, run, 9)[1]
    assert encode(worker, item).encoded == 1
    assert not planned(worker, run, 9)[1]
    (reason,) = stores_of(worker, run)["image"].unreadable().values()
    assert reason == "its sha256 in the shard is not that of its bytes"


def test_features_equal_the_model_s(worker: PrecomputeWorker, run: RunConfig) -> None:
    for item in planned(worker, run, 100)[1]:
        encode(worker, item)
    preset = system("digits")
    branch = preset.model.input_branch("image")
    model = build(preset.model, preset.pt, weights="pretrained")
    medium = ShardSet([Path(run.data[0])])[4].media[0]
    values = preprocess(branch.encoder, read_medium(medium, branch))
    with torch.no_grad():
        expected = model.encode("image", values[None])[0]
    reader = CacheReader(model=preset.model, stores=stores_of(worker, run), command="")
    torch.testing.assert_close(reader.medium(medium), expected, atol=1e-5, rtol=1e-5)


def test_kinds_that_share_an_encoder_share_its_id_and_no_key(tmp_path: Path) -> None:
    preset_shards(tmp_path, rows=2)
    folders = tuple(tmp_path / kind / "pt" for kind in ("image", "video", "audio", "points"))
    options = TrainOptions(preset="digits_omni", data=folders, output=tmp_path / "features")
    config = resolve(options, "pt")
    worker = PrecomputeWorker(config, None, batch=2, threads=1, device="cpu")
    keys = {kind: encoder_id.key for kind, encoder_id in worker.encoder_ids.items()}
    assert keys["image"] == keys["video"]
    assert len(set(keys.values())) == 3
    ranges = planned(worker, config, 100)[1]
    assert [item.kind for item in ranges] == ["image", "video", "audio", "points"]
    assert [encode(worker, item).encoded for item in ranges] == [2, 2, 2, 2]
    assert not planned(worker, config, 100)[1]


ENCODERS_TRAIN = 'pt.trainable=["inputs.*"]'


def test_trained_encoders_are_left_out(data: Path, tmp_path: Path) -> None:
    options = TrainOptions(preset="digits", data=(data,), output=tmp_path, set=(ENCODERS_TRAIN,))
    assert not frozen_encoders(resolve(options, "pt"), None)


def test_the_command_in_local_processes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["digits", "--data", str(data), "--output", str(tmp_path / "f"), "--json"]
    assert precompute([*words, "--media-per-file", "4"]) == 0
    first = json.loads(capsys.readouterr().out)["kinds"]["image"]
    assert precompute(words) == 0
    with pytest.raises(UserError, match="stage pt trains all encoders; there is nothing to"):
        precompute([*words, "--set", ENCODERS_TRAIN])
    counts = json.loads(capsys.readouterr().out)["kinds"]["image"]
    assert (first["distinct"], first["encoded"], first["unreadable"]) == (8, 7, 1)
    assert (counts["cached"], counts["encoded"], counts["unreadable"]) == (8, 0, 1)
    (written,) = (tmp_path / "f" / counts["encoder"]).glob("unreadable-image-*.json")
    (entry,) = json.loads(written.read_text())
    assert (entry["row"], entry["kind"]) == (5, "image")
    assert entry["reason"] == "Truncated File Read"
