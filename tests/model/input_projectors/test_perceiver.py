"""The perceiver resampler: OpenFlamingo's numbers and Flamingo's size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.input_projectors import perceiver
from model.spec import ProjectorShape, SpecError
from model.spec.projectors import PerceiverResampler

RECORDED = Path(__file__).parents[1] / "recorded" / "perceiver.safetensors"


def recorded():
    stored = load_file(RECORDED)
    weights = {
        name.removeprefix("weights."): stored.pop(name) for name in list(stored) if "." in name
    }
    return weights, stored


@torch.no_grad()
def test_tokens_equal_open_flamingos():
    weights, stored = recorded()
    spec = PerceiverResampler(
        latents=3, width=24, layers=2, heads=2, head_width=8, activation="gelu", max_frames=4
    )
    module = perceiver.build(
        spec, ProjectorShape(segments=3, tokens=5, width_in=24, width_out=24)
    ).eval()
    module.load_state_dict(perceiver.convert_state_dict(weights))
    found = module(stored["features"])
    torch.testing.assert_close(found, stored["tokens"], atol=2e-6, rtol=1e-5)


def test_squared_relu_squares_relu():
    values = torch.tensor([-2.0, 0.0, 3.0])
    assert perceiver.SquaredReLU()(values).tolist() == [0.0, 0.0, 9.0]


@torch.no_grad()
def test_the_number_of_tokens_does_not_depend_on_frames_but_their_order_matters():
    spec, shape = (
        PerceiverResampler().tiny(),
        ProjectorShape(segments=3, tokens=5, width_in=16, width_out=48),
    )
    torch.manual_seed(0)
    module = perceiver.build(spec, shape).eval()
    torch.nn.init.normal_(module.time.weight)
    features = torch.randn(2, 3, 5, 16)
    assert module(features).shape == module(features[:, :1]).shape == (2, spec.tokens(shape), 48)
    assert not torch.allclose(module(features), module(features.flip(1)))


def test_more_frames_than_time_embeddings_are_refused():
    with pytest.raises(SpecError, match="9 segments, but at most 8 positions"):
        PerceiverResampler().tokens(ProjectorShape(segments=9, tokens=5, width_in=16, width_out=48))


def test_the_size_is_flamingos():
    """194M (Alayrac et al. 2022, table 5) after NFNet-F6, whose width is 3072."""
    shape = ProjectorShape(segments=1, tokens=81, width_in=3072, width_out=1536)
    with torch.device("meta"):
        module = perceiver.build(PerceiverResampler(), shape)
    assert sum(weight.numel() for weight in module.parameters()) == pytest.approx(194e6, rel=0.005)


def test_every_weight_gets_a_gradient():
    shape = ProjectorShape(segments=2, tokens=5, width_in=16, width_out=48)
    module = perceiver.build(replace(PerceiverResampler().tiny(), max_frames=2), shape)
    module(torch.randn(2, 2, 5, 16)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in module.parameters())
