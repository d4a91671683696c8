"""mPLUG-Owl's abstractor: the published code's numbers."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from model.input_projectors import abstractor
from model.spec import ProjectorShape
from model.spec.projectors import Abstractor

RECORDED = Path(__file__).parents[1] / "recorded" / "abstractor.safetensors"
VIDEO = RECORDED.with_name("mplug_owl_video.safetensors")


@torch.no_grad()
def test_tokens_equal_those_of_the_published_code():
    stored = load_file(RECORDED)
    weights = {name.removeprefix("weights."): tensor for name, tensor in stored.items()}
    spec = Abstractor(queries=3, mlp_width=40, layers=2, heads=2)
    module = abstractor.build(
        spec, ProjectorShape(segments=1, tokens=7, width_in=24, width_out=40)
    ).eval()
    module.load_state_dict(abstractor.convert_state_dict(weights))
    found = module(stored["features"][:, None])
    torch.testing.assert_close(found, stored["tokens"], atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_videos_are_projected_as_in_the_published_code():
    stored = load_file(VIDEO)
    spec = Abstractor(queries=3, mlp_width=256, layers=1, heads=2, temporal=True)
    shape = ProjectorShape(segments=3, tokens=5, width_in=16, width_out=40)
    module = abstractor.build(spec, shape).eval()
    module.load_state_dict(abstractor.convert_state_dict(stored))
    for kind in ("video", "picture"):
        found = module(stored[f"features_{kind}"])
        assert found.shape == (2, spec.tokens(shape), 40)
        torch.testing.assert_close(found, stored[f"tokens_{kind}"], atol=5e-6, rtol=1e-5)


@torch.no_grad()
def test_each_segment_ends_with_the_same_token():
    spec, shape = (
        Abstractor().tiny(),
        ProjectorShape(segments=2, tokens=5, width_in=32, width_out=48),
    )
    module = abstractor.build(spec, shape).eval()
    found = module(torch.randn(2, 2, 5, 32))
    assert found.shape == (2, spec.tokens(shape), 48)
    ends_found = found.unflatten(1, (2, -1))[:, :, -1]
    assert (ends_found == ends_found[0, 0]).all()


def test_full_size_has_65_tokens_and_81_million_weights():
    """The sizes of the published weights; the paper gives no total for the abstractor alone."""
    spec, shape = (
        Abstractor(),
        ProjectorShape(segments=1, tokens=257, width_in=1024, width_out=4096),
    )
    with torch.device("meta"):
        module = abstractor.build(spec, shape)
    assert spec.tokens(shape) == 65
    layer = 4 * (1024**2 + 1024) + 3 * 1024 * 2816 + 2 * 2816 + 1024 + 6 * 1024 + 2 * 2816
    whole = 64 * 1024 + 6 * layer + 1024 * 4096 + 4096 + 4096
    assert sum(weight.numel() for weight in module.parameters()) == whole
