"""Computed FLOPs against those that PyTorch counts while a model runs."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.build import build, build_on_meta
from model.freeze import set_trainable
from model.presets import PRESETS, system
from pipeline.forecast.flops import Work, unit_costs
from tests.pipeline.forecast.test_plan import STAGES

NAMES = [
    # Three generators with their UNets, of which one is of videos: as long as ten others together.
    pytest.param(name, marks=pytest.mark.nightly) if name in ("codi_2", "next_gpt") else name
    for name in PRESETS
]

POSITIONS, TARGETS = 48, 7


def on_meta(preset, name):
    stage = preset.stage(name)
    model = build_on_meta(preset.model, stage)
    set_trainable(model, stage.trainable)
    return model, stage


def counted(backbone, *, backward):
    """Count a backbone's FLOPs on one sequence with full attention."""
    width = backbone.get_input_embeddings().weight.shape[1]
    inputs = torch.zeros(1, POSITIONS, width, requires_grad=True) * 1.0
    # The counter does not support the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden = backbone.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state
        logits = backbone.get_output_embeddings()(hidden[:, :TARGETS])
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


CAUSAL = [
    "llava_1_5_7b",  # LLaMA frozen, or with LoRA
    "blip_2",  # OPT
    "qwen_vl",
    "vila_7b",  # LLaMA, fully trainable
]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("stage", ["pt", "sft"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_backbone_costs_what_pytorch_counts(name, stage, backward):
    model, settings = on_meta(system(name).tiny(), stage)
    settings = replace(settings, recompute=False)
    costs = unit_costs(model, settings)
    real = build(system(name).tiny().model, settings, weights="random")
    set_trainable(real, settings.trainable)
    computed = costs.sample(
        positions=POSITIONS, targets=TARGETS, media={}, pairs=POSITIONS * POSITIONS
    )
    expected = counted(real.backbone, backward=backward)
    assert (computed.model if backward else computed.forward) == pytest.approx(expected, rel=0.02)


def test_the_published_7b():
    """Of 6.74e9 weights 131e6 are embeddings, 131e6 compute logits; the rest cost 2 FLOPs each."""
    model, stage = on_meta(system("llava_1_5_7b"), "pt")
    costs = unit_costs(model, stage)
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    assert costs.position.forward == costs.position.backward == 2 * matrices
    assert costs.target.forward == 2 * 4096 * 32_000
    assert costs.pair.forward == 32 * 4 * 4096
    # the first 23 of CLIP's layers at 577 positions, and 576 patches of 14 × 14 × 3
    layers = 23 * (577 * 2 * 12 * 1024 * 1024 + 4 * 577 * 577 * 1024)
    assert costs.encoders["image"].forward == pytest.approx(layers + 576 * 2 * 588 * 1024, rel=0.01)
    assert costs.encoders["image"].backward == 0
    assert costs.projectors["image"].forward == 576 * 2 * (1024 * 4096 + 4096 * 4096)


def test_recomputation_is_not_part_of_the_models_flops():
    model, stage = on_meta(system("llava_1_5_7b").tiny(), "pt")
    saved = unit_costs(model, replace(stage, recompute=False))
    recomputed = unit_costs(model, replace(stage, recompute=True))
    assert saved.position.model == recomputed.position.model == saved.position.device
    assert recomputed.position.device == 1.5 * saved.position.device


def test_work_adds_up():
    one = Work(forward=1.0, backward=2.0, recomputed=1.0)
    assert (one + one * 2).model == 9
    assert (one * 3).device == 12


def test_samples_add_up():
    """The FLOPs of several samples are the sum of their FLOPs, given the sum of their pairs."""
    model, stage = on_meta(system("llava_1_5_7b").tiny(), "sft")
    costs = unit_costs(model, stage)
    lengths = (10, 20, 30)
    each = [costs.sample(positions=n, targets=2, media={"image": 1}) for n in lengths]
    total = costs.sample(
        positions=60,
        targets=6,
        media={"image": 3},
        pairs=sum(costs.pairs(n, 2) for n in lengths),
    )
    assert total.model == pytest.approx(sum(one.model for one in each))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_preset_has_costs(name, stage):
    preset = system(name).tiny()
    costs = unit_costs(*on_meta(preset, stage))
    assert costs.position.forward > 0 < costs.position.backward
    for kind in preset.model.modalities:
        assert costs.medium(kind).forward > 0
