"""Qwen-VL's resampler: the published code's numbers, and positions of the grid."""

from math import cos, sin
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.input_projectors import qwen_resampler
from model.spec import ProjectorShape, SpecError
from model.spec.projectors import QwenResampler

RECORDED = Path(__file__).parents[1] / "recorded" / "qwen_resampler.safetensors"


@pytest.mark.parametrize(("suffix", "tokens"), [("", 16), ("_same", 4)])
@torch.no_grad()
def test_tokens_equal_those_of_the_published_code(suffix, tokens):
    stored = load_file(RECORDED)
    weights = {name.removeprefix("weights."): tensor for name, tensor in stored.items()}
    shape = ProjectorShape(segments=1, tokens=tokens, width_in=24, width_out=64)
    module = qwen_resampler.build(QwenResampler(queries=4, head_width=16), shape).eval()
    module.load_state_dict(qwen_resampler.convert_state_dict(weights))
    found = module(stored[f"features{suffix}"][:, None])
    torch.testing.assert_close(found, stored[f"tokens{suffix}"], atol=2e-6, rtol=1e-5)


def test_positions_are_sines_and_cosines_of_column_and_row():
    positions = qwen_resampler.grid_positions(3, 8)
    column, row = 2, 1
    waves = [
        f(place * frequency)
        for place in (column, row)
        for f in (sin, cos)
        for frequency in (1, 0.01)
    ]
    torch.testing.assert_close(positions[row * 3 + column], torch.tensor(waves))


@torch.no_grad()
def test_each_segment_is_projected_separately():
    spec, shape = (
        QwenResampler().tiny(),
        ProjectorShape(segments=3, tokens=9, width_in=16, width_out=32),
    )
    module = qwen_resampler.build(spec, shape).eval()
    features = torch.randn(2, 3, 9, 16)
    found = module(features)
    assert found.shape == (2, spec.tokens(shape), 32)
    alone = torch.cat([module(features[:, part : part + 1]) for part in range(3)], dim=1)
    torch.testing.assert_close(found, alone)


def test_a_class_token_is_refused():
    with pytest.raises(SpecError, match="257 tokens form no square grid"):
        QwenResampler().tokens(ProjectorShape(segments=1, tokens=257, width_in=16, width_out=32))


def test_the_size_is_qwen_vls():
    """0.08B (Bai et al. 2023, table 1), where the last linear layer is part of the encoder."""
    shape = ProjectorShape(segments=1, tokens=1024, width_in=1664, width_out=4096)
    with torch.device("meta"):
        module = qwen_resampler.build(QwenResampler(), shape)
    count = sum(weight.numel() for weight in module.parameters())
    assert count - module.head.weight.numel() == pytest.approx(0.08e9, abs=0.005e9)


@torch.no_grad()
def test_parameters_may_be_cast_without_the_positions_as_in_deepspeed():
    spec, shape = (
        QwenResampler().tiny(),
        ProjectorShape(segments=1, tokens=9, width_in=16, width_out=32),
    )
    module = qwen_resampler.build(spec, shape)
    for weight in module.parameters():
        weight.data = weight.data.bfloat16()
    assert module(torch.randn(2, 1, 9, 16).bfloat16()).dtype == torch.bfloat16
