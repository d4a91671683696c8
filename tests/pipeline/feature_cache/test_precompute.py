"""The Ray job without Ray: its plan, what a worker makes of a range, what goes into which store."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from etl.cli import UserError
from etl.runtime.ray_cluster import ray_cluster
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet, write_folder
from model.build import build, preprocess
from model.presets import system
from pipeline.config.run_config import RunConfig, TrainOptions, resolve
from pipeline.data.readers import read
from pipeline.feature_cache.precompute import Count, features, plan
from pipeline.feature_cache.reader import CacheReader
from pipeline.feature_cache.store import FeatureStore
from pipeline.feature_cache.worker import Filled, Filler, Range, frozen_parts
from tests.worlds import preset_shards


@pytest.fixture
def data(tmp_path: Path, captions: ShardSet) -> Path:
    """Ten pictures, of which one comes three times, one is broken, and one has no digest."""
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
def dummy_example(run: RunConfig) -> Filler:
    return Filler(run, None, batch=3, threads=2, device="cpu")


def stores_of(filler: Filler, run: RunConfig) -> dict[str, FeatureStore]:
    stores = {}
    for kind, producer in filler.producers.items():
        stores[kind] = FeatureStore(Path(run.output), producer)
        stores[kind].create()
    return stores


def planned(
    run: RunConfig, stores: dict[str, FeatureStore], size: int
) -> tuple[dict[str, Count], list[Range]]:
    slots = {kind: run.system.model.input_branch(kind) for kind in stores}
    return plan(ShardSet([Path(run.data[0])]), slots, (), stores, size)


def fill(filler: Filler, item: Range) -> Filled:
    filled = dummy_example(item)
    assert isinstance(filled, Filled)
    return filled


def test_each_medium_once_and_only_what_is_missing(filler: Filler, run: RunConfig) -> None:
    stores = stores_of(filler, run)
    counts, ranges = planned(run, stores, 3)
    assert counts["image"].distinct == 8
    assert [item.places_k2[:, 0].tolist() for item in ranges] == [[0, 1, 2], [4, 5, 6], [8, 9]]
    filled = fill(filler, ranges[1])
    assert (filled.encoded, filled.there, filled.media) == (2, 0, 3)
    (bad,) = filled.unreadable
    assert bad.row == 5
    assert bad.reason == "Truncated File Read"
    # A medium without a digest is looked at again: only its bytes tell that it is there.
    counts, ranges = planned(run, stores, 3)
    assert counts["image"].known == 1
    assert [item.places_k2[:, 0].tolist() for item in ranges] == [[0, 1, 2], [5, 6], [8, 9]]
    again = fill(filler, ranges[1])
    assert (again.encoded, again.there, len(again.unreadable)) == (0, 1, 1)


def test_features_are_what_the_model_makes(filler: Filler, run: RunConfig) -> None:
    stores = stores_of(filler, run)
    for item in planned(run, stores, 100)[1]:
        fill(filler, item)
    preset = system("digits")
    slot = preset.model.input_branch("image")
    model = build(preset.model, preset.pt, weights="pretrained")
    medium = ShardSet([Path(run.data[0])])[4].media[0]
    values = preprocess(slot.encoder, read(medium, slot))
    with torch.no_grad():
        made = model.encode("image", values[None])[0]
    found = CacheReader(slots={"image": slot}, stores=stores).find(medium)
    assert found is not None
    assert found.features is not None
    torch.testing.assert_close(found.features, made, atol=1e-5, rtol=1e-5)


def test_kinds_that_share_an_encoder_share_a_producer_and_no_key(tmp_path: Path) -> None:
    preset_shards(tmp_path, rows=2)
    folders = tuple(tmp_path / kind / "pt" for kind in ("image", "video", "audio", "points"))
    options = TrainOptions(preset="digits_omni", data=folders, output=tmp_path / "features")
    config = resolve(options, "pt")
    filler = Filler(config, None, batch=2, threads=1, device="cpu")
    keys = {kind: producer.key for kind, producer in filler.producers.items()}
    assert keys["image"] == keys["video"]
    assert len(set(keys.values())) == 3
    stores = stores_of(filler, config)
    slots = {kind: config.system.model.input_branch(kind) for kind in stores}
    _, ranges = plan(ShardSet(list(folders)), slots, (), stores, 100)
    assert [item.kind for item in ranges] == ["image", "video", "audio", "points"]
    assert [fill(filler, item).encoded for item in ranges] == [2, 2, 2, 2]
    assert len(stores["image"]) == 4


ENCODER_TRAINS = 'pt.trainable=["inputs.*"]'


def test_encoders_that_train_are_left_out(data: Path, tmp_path: Path) -> None:
    options = TrainOptions(preset="digits", data=(data,), output=tmp_path, set=(ENCODER_TRAINS,))
    assert not frozen_parts(resolve(options, "pt"), None)


def test_the_command_on_a_ray_of_its_own(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["digits", "--data", str(data), "--output", str(tmp_path / "f"), "--json"]
    with ray_cluster():  # as each would start it; they share one
        assert features([*words, "--part-media", "4"]) == 0
        with pytest.raises(UserError, match="all encoders train in stage pt; there is nothing to"):
            features([*words, "--set", ENCODER_TRAINS])
    told = json.loads(capsys.readouterr().out)["kinds"]["image"]
    assert (told["distinct"], told["encoded"], told["unreadable"]) == (8, 7, 1)
    (written,) = (tmp_path / "f" / told["producer"]).glob("unreadable-image-*.json")
    assert [entry["row"] for entry in json.loads(written.read_text())] == [5]
