"""MiniGPT-v2's projector: one linear layer on four concatenated adjacent tokens."""

import pytest
import torch

from model.input_projectors import token_concat
from model.spec import ProjectorShape, SpecError
from model.spec.projectors import TokenConcat


@torch.no_grad()
def test_a_token_is_a_linear_function_of_four_adjacent_tokens():
    spec, shape = TokenConcat(), ProjectorShape(segments=2, tokens=8, width_in=3, width_out=5)
    module = token_concat.build(spec, shape)
    features = torch.randn(2, 2, 8, 3)
    found = module(features)
    assert found.shape == (2, spec.tokens(shape), 5)
    for part in range(2):
        for token in range(2):
            four = torch.cat([features[:, part, 4 * token + i] for i in range(4)], dim=-1)
            expected = four @ module.linear.weight.T + module.linear.bias
            torch.testing.assert_close(found[:, 2 * part + token], expected)


def test_1024_tokens_become_256():
    assert (
        TokenConcat().tokens(ProjectorShape(segments=1, tokens=1024, width_in=1408, width_out=4096))
        == 256
    )


def test_a_class_token_is_refused():
    with pytest.raises(SpecError, match="1025 tokens are no multiple of group_size 4"):
        TokenConcat().tokens(ProjectorShape(segments=1, tokens=1025, width_in=1408, width_out=4096))
