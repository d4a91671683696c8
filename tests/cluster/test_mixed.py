"""Ranks with other media than their neighbours: nobody waits for ever, and the curve is one."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations_with_replacement
from operator import itemgetter
from pathlib import Path

import pytest

from etl.storage.schema import Sample
from etl.storage.shards import ShardSet, write_folder
from model.build import build_tokenizer
from model.presets import system
from model.spec.hf_encoders import HfAudio, HfVision
from model.spec.image_processor import squash
from pipeline.config.run_config import TrainOptions, resolve
from pipeline.data.sampler import build_sampler
from pipeline.data.shuffle import ShuffledStream, Source
from pipeline.run_folder.metrics_writer import read_metrics
from tests.cluster.ranks import REPOSITORY, Ranks, losses
from tests.worlds import generation_sample, generation_shards, generative_overrides, preset_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(480)]

KINDS = ("image", "video", "audio", "points", "text")
SETS = (
    (),
    ("image",),
    ("image", "image", "image"),
    ("video",),
    ("audio",),
    ("points",),
    ("to_image",),
    ("image", "video", "audio", "points", "to_image"),
)
"""The media of a rank in a step: none, one of a kind, several, all; `to_image` is to be drawn."""
PAIRS = tuple(combinations_with_replacement(SETS, 2))
OUTPUTS = ((), ("to_image",), ("to_video",), ("to_audio",))
"""The same for generated media alone, with an output branch for each kind."""
PATCHES = HfVision(
    weights="",
    config={
        **{"model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 64},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_patches": 4, "patch_size": 8},
    },
    processor=squash(16),
    width=32,
    grid=(2, 2),
)
WAVES = HfAudio(
    weights="",
    config={
        **{"model_type": "wavlm", "hidden_size": 32, "intermediate_size": 64},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_conv_pos_embeddings": 16},
        **{"num_conv_pos_embedding_groups": 2, "conv_dim": [32] * 7},
        **{"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]},
    },
    extractor={"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000},
    seconds=1.0,
)
ENCODERS = {"image": PATCHES, "video": PATCHES, "audio": WAVES}
"""Classes of transformers that read weights outside the weights' own modules."""
SETTINGS = (
    "pt.max_tokens=512",
    'model.inputs.audio.projector={"kind": "mlp", "shorten": "stack", "factor": 5}',
    *(
        f"model.inputs.{kind}.encoder={json.dumps(asdict(encoder))}"
        for kind, encoder in ENCODERS.items()
    ),
    *generative_overrides(system("digits_omni").tiny()),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of every kind, and texts, as `KIND/pt`."""
    folder = tmp_path_factory.mktemp("world")
    preset_shards(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(world: Path) -> Path:
    return _write_pairs(world, SETS, "pairs")


def _write_pairs(world: Path, sets: Sequence[tuple[str, ...]], name: str) -> Path:
    """Write two samples for each step, such that the steps go through all pairs of media sets."""
    shards = {kind: ShardSet([world / kind / "pt"]) for kind in KINDS}
    samples = [
        _sample(media, shards, f"{number}-{place}")
        for number, pair in enumerate(combinations_with_replacement(sets, 2))
        for place, media in enumerate(pair)
    ]
    # A run draws its order from the seed: each sample is written where that order looks for it.
    whole = Source(first=0, rows=len(samples), samples_per_epoch=len(samples))
    order = ShuffledStream(sources=(whole,), seed=0, epochs=1).rows(0, len(samples)).tolist()
    written = [sample for _, sample in sorted(zip(order, samples, strict=True), key=itemgetter(0))]
    return write_folder(world / name, written, job=name)


def _sample(media: tuple[str, ...], shards: dict[str, ShardSet], name: str) -> Sample:
    """Return a sample with these media, each with its caption, or a text."""
    parts = [
        generation_sample(0, number, kind=kind.removeprefix("to_"))
        if kind.startswith("to_")
        else shards[kind][number]
        for number, kind in enumerate(media)
    ]
    return _joined(parts or [shards["text"][0]], name)


def _joined(samples: list[Sample], name: str) -> Sample:
    """Make one sample of several."""
    turns = tuple(turn for sample in samples for turn in sample.turns)
    media = tuple(medium for sample in samples for medium in sample.media)
    return replace(samples[0], id=name, turns=turns, media=media)


def cut_up(zero: str, folder: Path) -> Path:
    """Return a DeepSpeed configuration under which all but the smallest weights are cut up."""
    config = json.loads((REPOSITORY / "ds_configs" / f"{zero}.json").read_text())
    if zero == "zero3":
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 2000
    path = folder / f"{zero}.json"
    path.write_text(json.dumps(config))
    return path


def words(
    data: list[Path],
    run: Path,
    zero: str,
    preset: str = "digits_omni",
    settings: Sequence[str] = SETTINGS,
) -> list[object]:
    return [
        *("pt", preset, "--scale", "tiny", "--data", *data, "--output", run),
        *("--ds-config", cut_up(zero, run.parent), "--learning-rate", 1e-3),
        *("--stall-seconds", 120, *(("--set", *settings) if settings else ())),
    ]


def test_every_pair_of_media_sets(pairs: Path, tmp_path: Path) -> None:
    """Two ranks with a sample each in every step, and one rank with both, which lacks nothing.

    The matrices of every part are cut up, so that each use of one is a collective. ZeRO-2, under
    which none is, is in the nightly tier.
    """
    assert media_sets(pairs, tmp_path, SETS, "digits_omni", SETTINGS) == list(PAIRS)
    _compare_one_rank_with_two(pairs, tmp_path, len(PAIRS), "digits_omni", SETTINGS)


@pytest.mark.nightly(minutes=4)
@pytest.mark.timeout(1200)
def test_ranks_that_generate_different_media(world: Path, tmp_path: Path) -> None:
    """The same for a model with three generators: each pair of them in the same step."""
    data = _write_pairs(world, OUTPUTS, "outputs")
    expected = list(combinations_with_replacement(OUTPUTS, 2))
    assert media_sets(data, tmp_path, OUTPUTS, "digits_any", ()) == expected
    run = _compare_one_rank_with_two(data, tmp_path, len(expected), "digits_any", ())
    seen = {name for entry in read_metrics(run) for name in entry["losses"]}
    kinds = ("image", "video", "audio")
    assert seen == {"text", *(f"to_{k}.{loss}" for k in kinds for loss in ("align", "denoise"))}


def _compare_one_rank_with_two(
    data: Path, folder: Path, steps: int, preset: str, settings: Sequence[str]
) -> Path:
    """Train on pairs with one rank and with two; return the run folder of the latter."""
    curves = []
    for ranks, zero in ((1, "zero2"), (2, "zero3")):
        run = folder / f"{zero}-{ranks}"
        command = words([data], run, zero, preset, settings)
        outcome = Ranks(ranks, [*command, "--global-batch", 2, "--epochs", 1]).wait(timeout=480)
        assert outcome.code == 0, outcome.stderr
        assert not (run / "bad_samples.jsonl").exists()
        curves.append(losses(run))
    assert len(curves[0]) == steps
    assert all(map(math.isfinite, curves[0]))
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    return run


def media_sets(
    pairs: Path,
    output: Path,
    sets: Sequence[tuple[str, ...]],
    preset: str,
    settings: Sequence[str],
) -> list[tuple[tuple[str, ...], ...]]:
    """Return what media the two ranks have in each step, in the order of `sets`."""
    options = TrainOptions(
        preset=preset,
        scale="tiny",
        data=(pairs,),
        output=output,
        global_batch=2,
        epochs=1,
        set=tuple(settings),
    )
    run = resolve(options, "pt")
    schedule = build_sampler(run, build_tokenizer(run.system.model, weights=run.weights))
    assert schedule.lengths is not None
    media_n = schedule.lengths.media_n

    def media(row: int) -> tuple[str, ...]:
        return tuple(kind for kind in media_n for _ in range(media_n[kind][row]))

    found = []
    for step in range(schedule.steps):
        (ranks,) = schedule.step(step, 2)
        own = [tuple(one for place in bin_ for one in media(place.row)) for bin_ in ranks]
        found.append(tuple(sorted(own, key=sets.index)))
    return found


@pytest.mark.nightly(minutes=8)
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_any_media_in_any_split_over_ranks(zero: str, world: Path, tmp_path: Path) -> None:
    """Five samples a step over two and over four ranks: some always lack what others have."""
    steps = {"zero2": 200, "zero3": 100}[zero]  # four ranks on two cores: over 3 s a step
    pictures = ShardSet([world / "image" / "pt"])
    several = [
        _joined([pictures[first + number] for number in range(3)], f"several-{first}")
        for first in range(12)
    ]
    data = [world / kind / "pt" for kind in KINDS]
    data += [write_folder(tmp_path / "several", several, job="several")]
    data += [generation_shards(tmp_path / "drawn", 24)]
    curves = []
    for ranks in (2, 4):
        run = tmp_path / str(ranks)
        more = ("--global-batch", 5, "--micro-batch", 2, "--max-steps", steps, "--epochs", 9)
        processes = Ranks(ranks, [*words(data, run, zero), *more, "--save-every", steps])
        outcome = processes.wait(timeout=1800)
        assert outcome.code == 0, outcome.stderr
        curves.append(losses(run))
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["samples"] == 5 * steps
        assert not (run / "bad_samples.jsonl").exists()
    assert len(curves[0]) == steps
    assert all(map(math.isfinite, curves[0]))
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
