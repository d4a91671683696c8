"""Every published system, tiny, learns: exactly what should move moves, and that is what is saved.

MM-PT, then SFT from what it has saved, with the samples, models and losses of a real run, in this
process and without DeepSpeed. `tests/cluster/test_presets.py` shows on real ranks what they add.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from etl.storage.shards import ShardSet
from model.batch import Batch
from model.build import (
    build,
    build_caption_tokenizers,
    build_text_tokenizer,
    build_tokenizer,
)
from model.freeze import set_trainable
from model.presets import PRESETS, system
from model.pretraining.build import sentence_reader
from model.spec import ModelSpec, Stage
from model.weights import Weights, load_trained, names_in
from pipeline.checkpoint.files import WEIGHTS
from pipeline.checkpoint.snapshot import snapshot
from pipeline.config.run_config import packs
from pipeline.data.collate import collate, pack
from pipeline.data.encode import SampleEncoder
from pipeline.data.generation_targets import GenerationTargetEncoder
from pipeline.train.losses import compute_losses, count_losses, loss_terms
from tests.worlds import preset_shards

STEPS = 4
SAMPLES = 2
"""Of each kind of media, all in one micro-batch."""

IDLE = {
    # The text half of the last layer: nothing reads the text's states behind it.
    "*instructblip*": ("*.bert.encoder.layer.1.output.*", "*.bert.encoder.layer.1.intermediate.*"),
    # Where queries look at the one token of a cloud: one weight, which is 1.
    "x_instructblip": (
        "inputs.points.*.crossattention.attention.key.*",
        "inputs.points.*.crossattention.attention.query.*",
    ),
    # The last layer's expert, but for the keys and values that words look at: nothing reads the
    # picture's states behind it.
    "cogvlm": (
        "backbone.model.layers.1.expert_mlp.*",
        "backbone.model.layers.1.self_attn.expert.[qo]_proj.*",
    ),
}
"""Preset → what trains in the published systems, too, though no gradient ever reaches it."""

NAMES = [name for name in PRESETS if not name.startswith("digits")]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    preset_shards(folder, rows=4 * SAMPLES)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices; beside another test's threads these would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """A stage that has been trained.

    Args:
        model: as it is now.
        before: its weights before the first step, by name.
        losses: of the same batch in each step.
        trainable: the names of what the stage trains.
        saved: the folder of its weights.
    """

    model: nn.Module
    before: dict[str, Tensor]
    losses: list[float]
    trainable: list[str]
    saved: Path


def learn(
    spec: ModelSpec,
    stage: Stage,
    data: list[Path],
    start: Path | None,
    to: Path,
    weights: Weights = "random",
) -> Learnt:
    """Train a stage on one batch, from another stage's saved weights if there are any."""
    batch = first_samples(spec, stage, data, weights)
    model = build(spec, stage, weights=weights, seed=0)
    if start is not None:
        load_trained(model, start / WEIGHTS)
    trains = set_trainable(model, stage.trainable)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    terms = loss_terms(spec, stage)
    counts = count_losses(terms, batch)
    moving = [weight for weight in model.parameters() if weight.requires_grad]
    # Without decay only a gradient moves anything.
    optimizer = torch.optim.AdamW(moving, lr=stage.learning_rate, weight_decay=0.0)
    losses = []
    model.train()
    for step in range(STEPS):
        torch.manual_seed(step)
        found = compute_losses(terms, model(batch, [*batch.media, *batch.generation_targets]))
        loss = sum(
            term.weight * found[term.name].total / max(1, counts[term.name]) for term in terms
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    save(model, to, inherited=start and start / WEIGHTS)
    return Learnt(model=model, before=before, losses=losses, trainable=trains, saved=to)


def first_samples(spec: ModelSpec, stage: Stage, data: list[Path], weights: Weights) -> Batch:
    tokenizer = build_tokenizer(spec, weights=weights)
    encoder = SampleEncoder(
        spec,
        tokenizer,
        prompt=stage.prompt,
        max_tokens=stage.max_tokens,
        text_tokenizer=build_text_tokenizer(spec, weights=weights),
        sentences=sentence_reader(spec, stage, weights=weights),
        generation_targets=generation_targets(spec, stage, weights),
    )
    folders = [ShardSet([folder]) for folder in data]
    rows = [encoder.encode(folder[number]) for folder in folders for number in range(SAMPLES)]
    if packs(spec, stage):
        return pack(rows)
    return collate(rows, pad_id=tokenizer.pad_token_id, side="right")


def generation_targets(
    spec: ModelSpec, stage: Stage, weights: Weights
) -> GenerationTargetEncoder | None:
    """Return what encodes the media that a stage generates, as a run does."""
    if stage.generation is None:
        return None
    branches = stage.output_branches(spec)
    return GenerationTargetEncoder(
        branches,
        build_caption_tokenizers(branches, weights=weights),
        generation=stage.generation,
        seed=0,
    )


class Engine:
    """What a snapshot asks of DeepSpeed's engine, of which there is none here."""

    checkpoint_engine = None

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def save_checkpoint(self, *words: object, **named: object) -> None:
        """Save DeepSpeed's own state: nothing."""

    def _copy_recovery_script(self, folder: str) -> None:
        """Copy DeepSpeed's script: nothing."""


def save(model: nn.Module, folder: Path, inherited: Path | None) -> None:
    """Save weights as a run does."""
    copied = snapshot(Engine(model), folder, inherited=inherited, objective_only=lambda name: False)
    copied.write(folder)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", NAMES)
def test_what_should_move_moves_and_is_saved(name: str, world: Path, tmp_path: Path) -> None:
    preset = system(name).tiny()
    kinds = [kind for kind in preset.pt.kinds(preset.model) if (world / kind).is_dir()]
    idle = [one for key, patterns in IDLE.items() if fnmatch(name, key) for one in patterns]
    start = None
    for stage in ("pt", "sft"):
        data = [world / kind / stage for kind in (*kinds, "text")]
        learnt = learn(preset.model, preset.stage(stage), data, start, tmp_path / stage)
        now = dict(learnt.model.named_parameters())
        moved = {one for one in now if not torch.equal(now[one], learnt.before[one])}
        should = {one for one in learnt.trainable if not any(fnmatch(one, each) for each in idle)}
        assert should
        assert moved == should
        saved = load_file(learnt.saved / WEIGHTS)
        # What an earlier stage has trained is kept, too, though it is frozen now.
        earlier = set(names_in(start / WEIGHTS)) if start is not None else set()
        assert set(saved) == set(learnt.trainable) | earlier
        assert all(torch.equal(weight, now[one]) for one, weight in saved.items())
        assert learnt.losses[-1] < learnt.losses[0]
        start = learnt.saved
