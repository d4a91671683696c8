"""Which kinds of media of a run use the feature cache, and why."""

import json
from pathlib import Path

import pytest

from etl.cli import UserError
from etl.storage.shards import ShardSet
from model.build import build
from model.freeze import set_trainable
from model.multimodal_lm import MultimodalLM
from model.presets import system
from pipeline.config.run_config import FeatureCacheMode, RunConfig, TrainOptions, resolve
from pipeline.feature_cache.training import open_feature_cache
from pipeline.run_folder.report import run_report
from tests.worlds import caption_shards


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return caption_shards(tmp_path / "data", 4)


def run_of(data: Path, cache: Path | None, mode: FeatureCacheMode, *settings: str) -> RunConfig:
    options = TrainOptions(
        preset="digits_omni",
        data=(data,),
        output=data.parent / "run",
        weights="random",
        feature_cache=cache,
        feature_cache_mode=mode,
        set=settings,
    )
    return resolve(options, "pt")


def model_of(run: RunConfig) -> MultimodalLM:
    model = build(run.system.model, run.settings, weights="random")
    set_trainable(model, run.settings.trainable)
    return model


def cache_decisions(run: RunConfig) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(
        (Path(run.output) / "features.json").read_text()
    )
    return found


@pytest.mark.usefixtures("alone")
def test_always_uses_every_frozen_encoder_and_shares_stores(data: Path, tmp_path: Path) -> None:
    run = run_of(data, tmp_path / "cache", "always")
    model = model_of(run)
    reader, writer = open_feature_cache(run, ShardSet([data]), model)
    assert set(reader.stores) == {"image", "video", "audio", "points"}
    assert reader.stores["image"] is reader.stores["video"]
    assert len(list((tmp_path / "cache").glob("*/encoder.json"))) == 3
    assert model.record_features == writer.add
    assert all(decision["used"] for decision in cache_decisions(run).values())


@pytest.mark.usefixtures("alone")
def test_a_kind_without_media_in_the_data_is_not_used(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(data, tmp_path / "cache", "auto")
    with caplog.at_level("INFO"):
        reader, _ = open_feature_cache(run, ShardSet([data]), model_of(run))
    decisions = cache_decisions(run)
    timing = decisions["image"]["timing"]
    assert isinstance(timing, dict)
    assert decisions["image"]["used"] is (timing["read"] < timing["decode"] + timing["encode"])
    assert ("image" in reader.stores) is decisions["image"]["used"]
    assert decisions["audio"]["reason"] == "not used: the data hold no audio to measure"
    assert "audio" not in reader.stores
    assert sum("features of" in message for message in caplog.messages) == 4


@pytest.mark.usefixtures("alone")
def test_the_cache_is_not_used_for_a_trained_encoder(data: Path, tmp_path: Path) -> None:
    setting = 'pt.trainable=["inputs.*.projector.*", "inputs.audio.encoder.*"]'
    run = run_of(data, tmp_path / "cache", "always", setting)
    reader, _ = open_feature_cache(run, ShardSet([data]), model_of(run))
    assert set(reader.stores) == {"image", "video", "points"}
    assert (
        cache_decisions(run)["audio"]["reason"]
        == "not cached, since the encoder is trained in this stage"
    )


@pytest.mark.usefixtures("alone")
def test_an_impossible_folder_is_an_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = run_of(data, tmp_path / "file", "auto")
    with pytest.raises(UserError, match="cannot be written"):
        open_feature_cache(run, ShardSet([data]), model_of(run))


def test_without_the_option_there_is_no_cache(data: Path) -> None:
    run = run_of(data, None, "auto")
    model = model_of(run)
    reader, _ = open_feature_cache(run, ShardSet([data]), model)
    assert not reader.stores
    assert model.record_features is None


def test_the_report_shows_the_decision(data: Path, tmp_path: Path) -> None:
    metrics = {"step": 1, "samples": 2, "tokens": 3, "loss": 1.0, "losses": {"text": 1.0}}
    metrics |= {"lr": 0.1, "grad_norm": 1.0, "step_seconds": 1.0, "tokens_per_second": 3.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    decision = {"image": {"used": True, "reason": "used; reading 1 ms"}}
    (tmp_path / "features.json").write_text(json.dumps(decision))
    page = run_report(tmp_path).read_text()
    assert "Feature cache" in page
    assert "used; reading 1 ms" in page


def test_options_are_part_of_the_configuration(data: Path, tmp_path: Path) -> None:
    run = run_of(data, tmp_path / "cache", "always")
    run.save(tmp_path)
    again = resolve(TrainOptions(preset=str(tmp_path / "config.json")), "pt")
    assert (again.feature_cache, again.feature_cache_mode) == (str(tmp_path / "cache"), "always")
    assert system("digits_omni").model == again.system.model
