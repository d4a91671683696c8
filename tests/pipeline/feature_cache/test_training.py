"""A run uses a complete feature cache, or ends with one line that says what is missing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from etl.cli import UserError
from etl.storage.shards import ShardSet
from model.build import build
from model.freeze import set_trainable
from model.multimodal_lm import MultimodalLM
from model.presets import system
from model.pretraining.build import build_init
from model.pretraining.image_text import ImageTextModel
from model.spec.system import InitStage
from pipeline.config.run_config import RunConfig, TrainOptions, parse_train_options, resolve
from pipeline.feature_cache.training import open_feature_cache
from pipeline.feature_cache.worker import MediaRange, PrecomputeWorker
from tests.worlds import caption_shards

ROWS = 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return caption_shards(tmp_path / "data", ROWS)


def run_of(
    data: Path, cache: Path | None, *settings: str, preset: str = "digits_omni"
) -> RunConfig:
    options = TrainOptions(
        preset=preset,
        data=(data,),
        output=data.parent / "run",
        weights="random",
        feature_cache=cache,
        set=settings,
    )
    return resolve(options, "pt")


def model_of(run: RunConfig) -> MultimodalLM:
    model = build(run.system.model, run.settings, weights="random")
    set_trainable(model, run.settings.trainable)
    return model


@pytest.fixture
def cache(data: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Return a function that caches the features of some of the images."""
    options = TrainOptions(
        preset="digits_omni", data=(data,), output=tmp_path / "cache", weights="random"
    )
    worker = PrecomputeWorker(resolve(options, "pt"), None, batch=4, threads=1, device="cpu")

    def make(count: int) -> Path:
        media_k2 = np.array([[row, 0] for row in range(count)])
        worker(MediaRange(kind="image", media_k2=media_k2))
        return tmp_path / "cache"

    return make


@pytest.mark.usefixtures("alone")
def test_a_complete_cache_is_used_for_every_frozen_encoder(
    data: Path, cache: Callable[[int], Path], tmp_path: Path
) -> None:
    """Kinds that the data lack have no features, and no encoder is called for them."""
    run = run_of(data, cache(ROWS))
    model = model_of(run)
    reader = open_feature_cache(run, ShardSet([data]), model)
    assert reader is not None
    assert set(reader.kinds) == set(model.feature_kinds) == {"image", "video", "audio", "points"}
    assert reader.stores["image"] is reader.stores["video"]
    subset = caption_shards(tmp_path / "subset", ROWS - 2)
    assert open_feature_cache(run, ShardSet([subset, data, subset]), model) is not None


@pytest.mark.usefixtures("alone")
def test_an_incomplete_cache_is_an_error_that_names_the_command(
    data: Path, cache: Callable[[int], Path]
) -> None:
    run = run_of(data, cache(ROWS - 2))
    model = model_of(run)
    with pytest.raises(UserError) as error:
        open_feature_cache(run, ShardSet([data]), model)
    (folder,) = (data.parent / "cache").iterdir()
    assert str(error.value) == (
        f"--feature-cache {folder.parent}: lacks features of these data by the run's encoders: "
        f"2 of {ROWS} image ({folder.name}); `python -m pipeline features {run.output}/config.json "
        f"--stage pt --output {folder.parent}` makes them"
    )
    assert not model.feature_kinds


@pytest.mark.usefixtures("alone")
def test_the_stage_before_pt_reads_features_too(data: Path, tmp_path: Path) -> None:
    options = TrainOptions(preset="blip_2", scale="tiny", data=(data,), output=tmp_path / "cache")
    config = resolve(options, "init")
    worker = PrecomputeWorker(config, None, batch=4, threads=1, device="cpu")
    worker(MediaRange(kind="image", media_k2=np.array([[row, 0] for row in range(ROWS)])))
    run = replace(config, output=str(tmp_path / "run"), feature_cache=config.output)
    assert isinstance(run.settings, InitStage)
    model = build_init(run.system.model, run.settings, weights="random")
    set_trainable(model, run.settings.trainable)
    assert open_feature_cache(run, ShardSet([data]), model) is not None
    assert isinstance(model, ImageTextModel)
    assert set(model.feature_kinds) == {"image"}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("change", ["seed", "folder"])
def test_features_of_another_encoder_are_not_used(
    data: Path, cache: Callable[[int], Path], change: str
) -> None:
    made = cache(ROWS)
    run = run_of(data, made if change == "seed" else made.parent / "none")
    model = build(run.system.model, run.settings, weights="random", seed=int(change == "seed"))
    set_trainable(model, run.settings.trainable)
    with pytest.raises(UserError, match=f"{ROWS} of {ROWS} image"):
        open_feature_cache(run, ShardSet([data]), model)


@pytest.mark.usefixtures("alone")
def test_a_damaged_file_is_an_error(data: Path, cache: Callable[[int], Path]) -> None:
    run = run_of(data, cache(ROWS))
    (path,) = (data.parent / "cache").glob("*/part-*.arrow")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"damaged .*; `python -m pipeline features .*` makes"):
        open_feature_cache(run, ShardSet([data]), model_of(run))


@pytest.mark.usefixtures("alone")
def test_a_trained_encoder_is_not_cached(
    data: Path, cache: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    setting = 'pt.trainable=["inputs.*.projector.*", "inputs.audio.encoder.*"]'
    run = run_of(data, cache(ROWS), setting)
    with caplog.at_level("INFO"):
        reader = open_feature_cache(run, ShardSet([data]), model_of(run))
    assert reader is not None
    assert set(reader.kinds) == {"image", "video", "points"}
    message = "features of audio: not cached, since the encoder is trained in this stage"
    assert message in caplog.messages


@pytest.mark.usefixtures("alone")
def test_a_cache_without_a_frozen_encoder_is_an_error(data: Path, tmp_path: Path) -> None:
    run = run_of(data, tmp_path / "cache", 'pt.trainable=["inputs.*"]', preset="digits")
    with pytest.raises(UserError, match="stage pt of digits uses no frozen encoder"):
        open_feature_cache(run, ShardSet([data]), model_of(run))


def test_without_the_option_there_is_no_cache(data: Path) -> None:
    run = run_of(data, None)
    model = model_of(run)
    assert open_feature_cache(run, ShardSet([data]), model) is None
    assert not model.feature_kinds


def test_the_option_is_part_of_the_configuration(data: Path, tmp_path: Path) -> None:
    run = run_of(data, tmp_path / "cache")
    run.save(tmp_path)
    again = resolve(parse_train_options("pt", [str(tmp_path / "config.json")]), "pt")
    assert again.feature_cache == str(tmp_path / "cache")
    assert system("digits_omni").model == again.system.model
