"""The MLP projector: the published layers in order, applied per token."""

import pytest
import torch
from torch import nn

from model.input_projectors import mlp
from model.spec import Mlp, ProjectorShape

SHAPE = ProjectorShape(segments=2, tokens=3, width_in=8, width_out=16)


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        (Mlp(depth=1), (nn.Linear,)),
        (Mlp(), (nn.Linear, nn.GELU, nn.Linear)),
        (Mlp(norm=True), (nn.Linear, nn.GELU, nn.LayerNorm, nn.Linear)),
        (Mlp(depth=1, norm=True), (nn.Linear,)),
    ],
    ids=["LLaVA", "LLaVA-1.5", "CoDi-2", "linear"],
)
def test_layers_equal_the_published_ones(spec, layers):
    module = mlp.build(spec, SHAPE, weights="random")
    assert tuple(type(layer) for layer in module.layers) == layers
    assert module(torch.zeros(4, 2, 3, 8)).shape == (4, spec.tokens(SHAPE), 16)


@torch.no_grad()
def test_tokens_are_projected_separately():
    torch.manual_seed(0)
    module = mlp.build(Mlp(norm=True), SHAPE, weights="random")
    features = torch.randn(1, 2, 3, 8)
    alone = module(features[:, 1:, 2:])
    torch.testing.assert_close(module(features)[:, -1:], alone)
