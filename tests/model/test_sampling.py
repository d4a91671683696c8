"""The choice of the next token: the same tokens stay possible as with transformers' processors."""

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.sampling import Sampling, TokenChoice, choose_token, cut_at, seed_of, token_rng
from model.spec.base import FieldError

VOCABULARY = 40
DRAWS = 4000


def logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


def shares(sampling: Sampling, scores_v: Tensor, earlier_t: Tensor) -> Tensor:
    """Return the probabilities that transformers' processors leave, in its order of them."""
    processors = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(penalty=sampling.repetition_penalty)]
    )
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(top_k=sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(top_p=sampling.top_p))
    return processors(earlier_t[None], scores_v[None])[0].softmax(dim=0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6, top_p=0.8),
        Sampling(temperature=2.0, top_k=5),
        Sampling(temperature=1.5, top_k=12, top_p=0.7),
        Sampling(temperature=1.0, repetition_penalty=2.5, top_k=8),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_of_transformers(sampling: Sampling) -> None:
    scores_v, earlier_t, rng = logits(), torch.tensor([3, 7, 7, 21]), token_rng(0)
    expected_v = shares(sampling, scores_v, earlier_t)
    drawn = [choose_token(scores_v, earlier_t, sampling, rng) for _ in range(DRAWS)]
    found_v = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY) / DRAWS
    assert set(drawn) <= set(expected_v.nonzero()[:, 0].tolist())
    assert (found_v - expected_v).abs().max() < 4 * 0.5 / DRAWS**0.5


def test_without_a_temperature_the_most_likely_token_is_taken() -> None:
    scores_v, none_t = logits(), torch.empty(0, dtype=torch.long)
    best = int(scores_v.argmax())
    assert choose_token(scores_v, none_t, Sampling(), token_rng(0)) == best
    penalized = Sampling(repetition_penalty=100.0)
    other = choose_token(scores_v, torch.tensor([best]), penalized, token_rng(0))
    assert other == int(scores_v.topk(2).indices[1])
    assert Sampling().is_greedy
    assert not penalized.is_greedy
    assert not Sampling(temperature=0.1).is_greedy


def test_a_row_draws_the_same_alone_and_in_any_batch() -> None:
    sampling, scores_bv = Sampling(temperature=1.0), torch.stack([logits(n) for n in range(3)])
    earlier_bt = torch.tensor([[1], [2], [3]])
    whole = TokenChoice(sampling, [5, 6, 7])
    for step in range(3):
        chosen_b = whole(earlier_bt, scores_bv + step).argmax(dim=1)
        if step == 0:
            first_b = chosen_b
    alone = TokenChoice(sampling, [6])
    assert alone(earlier_bt[1:2], scores_bv[1:2]).argmax() == first_b[1]
    seeds = {seed_of(0, sample, number) for sample in ("a", "b") for number in range(4)}
    assert len(seeds) == 8
    assert seed_of(0, "a", 1) == seed_of(0, "a", 1) != seed_of(1, "a", 1)


def test_a_text_ends_before_the_first_stop() -> None:
    assert cut_at("one two three", ("three", "two")) == "one "
    assert cut_at("one", ("two",)) == "one"
    assert cut_at("one", ()) == "one"


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"n": 0},
        {"stop": ("",)},
    ],
)
def test_values_out_of_range_are_named(values: dict) -> None:
    [name] = values
    with pytest.raises(FieldError, match=f"{name}: "):
        Sampling(**values)
