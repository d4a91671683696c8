"""Continuous integrate-and-fire: the published loop's numbers, gradients, and edge cases."""

from pathlib import Path

import pytest
import torch

from model.encoders.cif import FrameWeights, fired_shares, integrate_and_fire
from tests.model.recorded_weights import recorded

RECORDED = Path(__file__).parents[1] / "recorded" / "cif.safetensors"


def fire_one_by_one(states, weights):
    """Dong & Xu 2020, §2.2, frame after frame; the tail is dropped."""
    fired, word, filled = [], torch.zeros_like(states[0]), torch.zeros(())
    for state, weight in zip(states, weights, strict=True):
        remaining = weight
        while filled + remaining >= 1:
            used = 1 - filled
            fired.append(word + used * state)
            word, filled, remaining = torch.zeros_like(word), torch.zeros(()), remaining - used
        word, filled = word + remaining * state, filled + remaining
    return torch.stack(fired)


def test_frame_weights_equal_the_published_ones():
    weights, expected = recorded(RECORDED)
    names = {"conv": "convolution", "weight_proj": "linear"}
    layer = FrameWeights(8)
    layer.load_state_dict(
        {names[name.split(".")[0]] + "." + name.split(".")[1]: t for name, t in weights.items()}
    )
    with torch.no_grad():
        ours = layer(expected["states"])
    heard = expected["weights"] > 0
    assert torch.allclose(ours[heard], expected["weights"][heard], atol=1e-6)


def test_fired_vectors_equal_the_published_ones_including_tails():
    _, expected = recorded(RECORDED)
    fired = integrate_and_fire(expected["states"], expected["weights"])
    assert torch.allclose(fired, expected["fired"], atol=1e-5, rtol=0)
    # 17.02, 12.84 and 9.32 words: one tail is heavy enough.
    assert (fired != 0).any(-1).sum(1).tolist() == [17, 13, 9]


def test_scaled_weights_fire_the_same_number_of_every_clip():
    _, expected = recorded(RECORDED)
    fired = integrate_and_fire(expected["states"], expected["weights"], 7)
    # The reference's sums are 7.0001, so that rounding does not drop its last vector.
    assert torch.allclose(fired, expected["scaled"], atol=5e-4, rtol=0)


@pytest.mark.parametrize("tokens", [3, 9, 30])
def test_values_and_gradients_equal_those_of_the_loop(tokens):
    torch.manual_seed(0)
    states = torch.randn(12, 5, dtype=torch.float64)
    logits = torch.randn(12, dtype=torch.float64)
    want = torch.randn(tokens, 5, dtype=torch.float64)
    gradients = []
    for loop in (False, True):
        leaves = [states.clone().requires_grad_(), logits.clone().requires_grad_()]
        weights = leaves[1].sigmoid()
        if loop:
            scaled = weights * (tokens + 1e-12) / weights.sum()
            fired = fire_one_by_one(leaves[0], scaled)
        else:
            fired = integrate_and_fire(leaves[0][None], weights[None], tokens)[0]
        assert fired.shape == want.shape
        ((fired - want) ** 2).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_every_vector_weighs_one_and_all_frame_weights_are_used():
    torch.manual_seed(0)
    weights = torch.rand(4, 50)
    shares = fired_shares(weights * 6 / weights.sum(1, keepdim=True), 6)
    assert torch.allclose(shares.sum(2), torch.ones(4, 6), atol=1e-5)
    assert torch.allclose(shares.sum(1), weights * 6 / weights.sum(1, keepdim=True), atol=1e-5)


def test_a_heavy_frame_fires_more_than_once():
    states = torch.tensor([[[1.0], [5.0]]])
    fired = integrate_and_fire(states, torch.tensor([[0.5, 2.5]]))
    assert fired[0, :, 0].tolist() == [3, 5, 5]


def test_silence_gives_zeros_and_no_broken_gradient():
    weights = torch.zeros(2, 10, requires_grad=True)
    fired = integrate_and_fire(torch.randn(2, 10, 4), weights, 3)
    assert not fired.any()
    fired.sum().backward()
    assert weights.grad.isfinite().all()
