"""The MLP projector: the published layers in order, applied per token."""

import pytest
import torch
from torch import nn

from model.input_projectors import mlp
from model.spec import Mlp, ProjectorShape, SpecError

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


def shortened(spec, tokens):
    """Return shortened random features of one segment, and the features."""
    torch.manual_seed(0)
    features = torch.randn(2, tokens, 3)
    return mlp.shorten(spec, features), features


def test_stacked_frames_are_concatenated_in_order():
    found, features = shortened(Mlp(shorten="stack", factor=5), 12)
    assert found.shape == (2, 3, 15)
    padded = torch.cat([features, torch.zeros(2, 3, 3)], dim=1)
    for token in range(3):
        five = [padded[:, 5 * token + frame] for frame in range(5)]
        assert torch.equal(found[:, token], torch.cat(five, dim=-1))


def test_pooled_frames_are_means():
    found, features = shortened(Mlp(shorten="pool", factor=2), 5)
    assert found.shape == (2, 3, 3)
    pairs = [features[:, :2].mean(1), features[:, 2:4].mean(1), features[:, 4]]
    torch.testing.assert_close(found, torch.stack(pairs, dim=1))


def squares(features, side, factor):
    """Return the patches of each square of a grid, row by row."""
    grid = features.unflatten(1, (side, side))
    return [
        [
            grid[:, factor * row + down, factor * column + right]
            for down in range(factor)
            for right in range(factor)
        ]
        for row in range(side // factor)
        for column in range(side // factor)
    ]


def test_a_grid_is_pooled_in_squares():
    found, features = shortened(Mlp(shorten="pool_grid", factor=3), 36)
    expected = [torch.stack(patches).mean(0) for patches in squares(features, 6, 3)]
    torch.testing.assert_close(found, torch.stack(expected, dim=1))


def test_pixel_shuffle_concatenates_squares_of_patches():
    found, features = shortened(Mlp(shorten="pixel_shuffle", factor=2), 36)
    expected = [torch.cat(patches, dim=-1) for patches in squares(features, 6, 2)]
    assert torch.equal(found, torch.stack(expected, dim=1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("spec", "tokens"),
    [
        (Mlp(shorten="stack", factor=5), 8),
        (Mlp(shorten="pool", factor=5), 8),
        (Mlp(shorten="pool_grid", factor=2), 9),
        (Mlp(shorten="pixel_shuffle", factor=2, norm_input=True), 9),
    ],
    ids=lambda value: getattr(value, "shorten", value),
)
def test_an_mlp_follows_and_segments_stay_apart(spec, tokens):
    shape = ProjectorShape(segments=2, tokens=36, width_in=8, width_out=16)
    assert spec.tokens(shape) == 2 * tokens
    module = mlp.build(spec, shape, weights="random")
    features = torch.randn(3, 2, 36, 8)
    found = module(features)
    assert found.shape == (3, 2 * tokens, 16)
    expected = module.layers(mlp.shorten(spec, features[:, 1]))
    torch.testing.assert_close(found[:, tokens:], expected)


def test_internvl_s_projector():
    """Shuffled 2 x 2, a norm, two linear layers (InternVL 1.5)."""
    spec = Mlp(shorten="pixel_shuffle", factor=2, norm_input=True)
    shape = ProjectorShape(segments=1, tokens=1024, width_in=8, width_out=16)
    layers = mlp.build(spec, shape, weights="random").layers
    kinds = (nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear)
    assert tuple(type(layer) for layer in layers) == kinds
    assert (layers[0].normalized_shape, layers[1].in_features) == ((32,), 32)
    assert spec.tokens(shape) == 256


@pytest.mark.parametrize(
    ("fields", "tokens", "message"),
    [
        ({"shorten": "stack"}, 36, "shorten 'stack' with factor 1; want"),
        ({"factor": 2}, 36, "shorten 'none' with factor 2; want"),
        ({"shorten": "pixel_shuffle", "factor": 4}, 36, "a grid side of 6 tokens must be"),
        ({"shorten": "pool_grid", "factor": 2}, 37, "37 tokens form no square grid"),
    ],
)
def test_what_cannot_be_shortened_is_refused(fields, tokens, message):
    shape = ProjectorShape(segments=1, tokens=tokens, width_in=8, width_out=16)
    with pytest.raises(SpecError, match=message):
        Mlp(**fields).tokens(shape)
