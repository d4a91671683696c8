"""MobileVLM's projectors: the published code's numbers and sizes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.input_projectors import ldp
from model.spec import ProjectorShape, SpecError
from model.spec.projectors import Ldp

RECORDED = Path(__file__).parents[1] / "recorded"


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_tokens_equal_those_of_the_published_code(version):
    stored = load_file(RECORDED / f"ldp_v{version}.safetensors")
    features, expected = stored.pop("features"), stored.pop("tokens")
    weights = {name.removeprefix("weights."): tensor for name, tensor in stored.items()}
    shape = ProjectorShape(segments=1, tokens=16, width_in=24, width_out=48)
    module = ldp.build(Ldp(version=version), shape).eval()
    module.load_state_dict(ldp.convert_state_dict(weights))
    torch.testing.assert_close(module(features[:, None]), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("version", "millions"), [(1, 18.94), (2, 6.32)])
def test_the_sizes_are_mobilevlms(version, millions):
    """Chu et al. 2024, table 5: LDP 18.94M, LDPv2 6.32M, 576 tokens to 144."""
    spec, shape = (
        Ldp(version=version),
        ProjectorShape(segments=1, tokens=576, width_in=1024, width_out=2048),
    )
    with torch.device("meta"):
        module = ldp.build(spec, shape)
    count = sum(weight.numel() for weight in module.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)
    assert spec.tokens(shape) == 144


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_each_segment_is_downsampled_separately(version):
    spec, shape = (
        Ldp(version=version).tiny(),
        ProjectorShape(segments=3, tokens=4, width_in=16, width_out=32),
    )
    module = ldp.build(spec, shape).eval()
    features = torch.randn(2, 3, 4, 16)
    found = module(features)
    assert found.shape == (2, spec.tokens(shape), 32) == (2, 3, 32)
    alone = torch.cat([module(features[:, part : part + 1]) for part in range(3)], dim=1)
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize(
    ("tokens", "message"), [(577, "no square grid"), (9, "must be a multiple of 2")]
)
def test_a_grid_that_cannot_be_downsampled_is_refused(tokens, message):
    with pytest.raises(SpecError, match=message):
        Ldp().tokens(ProjectorShape(segments=1, tokens=tokens, width_in=16, width_out=32))
