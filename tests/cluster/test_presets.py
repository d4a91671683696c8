"""Published systems, tiny, train for real: MM-PT then SFT under ZeRO-3 on two ranks.

One for each wiring; the nightly tier has all of them. That each preset moves and saves exactly what
it should is shown without ranks in `tests/pipeline/test_presets_train.py`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from model.compose.backbones import backbone_from, lora_targets
from model.presets import system
from model.presets.blocks import BACKBONE, PROJECTORS
from model.spec import Lora
from pipeline.config.run_config import changed_preset
from tests.cluster.ranks import Ranks
from tests.pipeline.test_presets_train import IDLE, NAMES
from tests.published_backbones import CAUSAL, SEQ2SEQ, save_backbone
from tests.worlds import preset_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

WIRINGS = (
    "flamingo_3b",  # layers of gated cross-attention, two kinds through one encoder
    "cogvlm",  # experts in the backbone's layers; the whole backbone trains in SFT
    "instructblip_flan_t5_xl",  # encoder-decoder; a Q-Former that reads the instruction
    "x_llm",  # a prefix LM; kinds share an encoder, of which a part trains
    "pandagpt",  # spliced tokens of one encoder for many kinds, and LoRA
)
"""Each way in which media reach a backbone, and each kind of part that may train; `test_init` has
the reference of `dlp`."""

RARELY = {
    # One token of a condition looks at itself alone: the gradient is zero but for rounding.
    "* next_gpt": (
        "outputs.audio.projector.decoder.*.attention.query.bias",
        "outputs.audio.projector.decoder.*.attention.key.bias",
    ),
    # Both layers of the tiny backbone have a window of four tokens: through a question the answer
    # does not reach the picture. MM-PT's captions follow their pictures at once.
    "sft */mistral.json": ("inputs.image.projector.*",),
    "sft */phi-3.json": ("inputs.image.projector.*",),
}
"""Stage and preset → what a gradient may not reach here, beside `IDLE`."""

OTHERS = [name for name in NAMES if name not in WIRINGS]
PAIR_RUN = 4
"""Presets that one pair of ranks trains in a test of the nightly tier."""
GROUPS = [OTHERS[first : first + PAIR_RUN] for first in range(0, len(OTHERS), PAIR_RUN)]
LANGUAGE_MODELS = [*CAUSAL, *SEQ2SEQ]
FAMILIES = [LANGUAGE_MODELS[first::3] for first in range(3)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presets")
    preset_shards(folder)
    return folder


def train(world: Path, names: list[str]) -> None:
    outcome = Ranks(2, [world, *names], module="tests.cluster.presets_worker").wait(timeout=480)
    assert outcome.code == 0, outcome.stderr[-4000:]
    for name in names:
        for stage in ("pt", "sft"):
            check(world / "runs" / Path(name).stem, name, stage)


def check(run: Path, name: str, stage: str) -> None:
    """Exactly what should move has moved, that was saved, and the loss went down."""
    report = json.loads((run / f"{stage}.json").read_text())
    idle = [one for key, patterns in IDLE.items() if fnmatch(name, key) for one in patterns]
    idle += [
        one
        for key, patterns in RARELY.items()
        if fnmatch(f"{stage} {name}", key)
        for one in patterns
    ]
    should = {one for one in report["trainable"] if not any(fnmatch(one, each) for each in idle)}
    assert should, name
    # Weight decay may move what no gradient reaches.
    assert should <= set(report["moved"]) <= set(report["trainable"]), name
    # What an earlier stage has trained is kept, too, though it is frozen now.
    assert set(report["saved"]) >= set(report["trainable"]), name
    assert not report["saved_wrong"], name
    if changed_preset(name, "tiny", ()).stage(stage).reference is not None:
        # Beside the text's loss there is that of the reference, ten times as heavy.
        lines = (run / stage / "metrics.jsonl").read_text().splitlines()
        before, *_, after = (json.loads(line)["loss"] for line in lines)
    else:
        before, after = report["loss"]
    assert after < before, name


@pytest.mark.parametrize("name", WIRINGS)
def test_each_wiring_trains_on_two_ranks(name: str, world: Path) -> None:
    train(world, [name])


def family(name: str, folder: Path) -> str:
    """Write the preset file of LLaVA with a language model of another family.

    SFT trains the whole of tied backbones, whose one matrix two modules use, and LoRA in others.
    """
    backbone = backbone_from(str(save_backbone(name, folder / "published" / name)))
    llava = system("llava_1_5_7b")
    sft = replace(llava.stage("sft"), peft=Lora(rank=4, alpha=8, targets=lora_targets(backbone)))
    if backbone.config.get("tie_word_embeddings", True):
        sft = replace(sft, peft=None, trainable=(PROJECTORS, BACKBONE))
    own = replace(llava, name=name, model=replace(llava.model, backbone=backbone), sft=sft)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(asdict(own)))
    return str(file)


@pytest.mark.nightly(minutes=2)
@pytest.mark.parametrize("names", FAMILIES, ids="-".join)
def test_every_family_of_language_models_trains_on_two_ranks(names: list[str], world: Path) -> None:
    train(world, [family(name, world) for name in names])


@pytest.mark.nightly(minutes=2)
@pytest.mark.parametrize("names", GROUPS, ids="-".join)
def test_every_preset_trains_on_two_ranks(names: list[str], world: Path) -> None:
    train(world, names)
