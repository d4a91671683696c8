"""How the next token of an answer is chosen, everywhere that answers are made.

The names are those of OpenAI's API and of transformers' `GenerationConfig`. Each answer draws from
a generator of its own, one number per token, so that the others in its batch do not change it.

Shapes: b answers, t tokens so far, v vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor
from transformers import LogitsProcessor

from model.spec.base import FieldError, check_at_least


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and where an answer ends.

    Raises:
        FieldError: a value out of its range.
    """

    temperature: float = 0.0
    """Of the softmax that tokens are sampled from; 0 takes the most likely token."""
    top_p: float = 1.0
    """Share of the probability, of the most likely tokens, that is sampled from (nucleus sampling,
    Holtzman et al. 2020)."""
    top_k: int = 0
    """Sample from so many of the most likely tokens (Fan et al. 2018); 0 for all."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that the answer has already
    (CTRL, Keskar et al. 2019, §4.1); 1 is without."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends, besides the end of the chat template."""
    n: int = 1
    """Answers to each question."""
    seed: int = 0
    """With a sample's id and the number of an answer to it, it seeds that answer."""

    def __post_init__(self) -> None:
        """Raise FieldError for a value out of its range."""
        check_at_least(self, 0, "temperature", "top_k", "seed")
        check_at_least(self, 1, "n")
        for name in ("top_p", "repetition_penalty"):
            value = getattr(self, name)
            if not value > 0 or (name == "top_p" and value > 1):
                most = " and at most 1" if name == "top_p" else ""
                raise FieldError(name, f"{value}, want a number above 0{most}")
        if "" in self.stop:
            raise FieldError("stop", "an empty text, want one that ends an answer")

    @classmethod
    def of(cls, options: object) -> Self:
        """Return the settings among a command's options."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken, unchanged."""
        return self.temperature == 0 and self.repetition_penalty == 1


GREEDY = Sampling()
"""The most likely tokens: the default."""


def seed_of(seed: int, sample: str, purpose: int | str) -> int:
    """Return the seed, below 2³², of an answer to a sample, or of a medium in it.

    It depends on the run's seed, the sample's id and the purpose alone, so not on batches, ranks or
    workers.
    """
    digest = hashlib.sha256(f"{seed} {purpose} {sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def token_rng(seed: int) -> torch.Generator:
    """Return the generator of an answer's random numbers; on the CPU, so the same on any device."""
    return torch.Generator("cpu").manual_seed(seed)


def choose_token(
    scores_v: Tensor, earlier_t: Tensor, sampling: Sampling, rng: torch.Generator
) -> int:
    """Return the next token of an answer.

    Args:
        scores_v: logits.
        earlier_t: the answer's tokens so far.
        sampling: how it is chosen.
        rng: gives one number per token, unless the most likely one is taken.
    """
    scores_v = _penalized(scores_v.float(), earlier_t, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(scores_v.argmax())
    share_v = (scores_v / sampling.temperature).softmax(dim=0)
    share_v, order_v = share_v.sort(descending=True, stable=True)
    if sampling.top_k:
        share_v = share_v[: sampling.top_k]
        share_v = share_v / share_v.sum()
    before_v = share_v.cumsum(0) - share_v
    share_v = share_v.masked_fill(before_v >= sampling.top_p, 0.0)
    whole_v = share_v.double().cumsum(0)
    draw = torch.rand(1, generator=rng, dtype=torch.float64, device="cpu").item()
    place = int((whole_v <= draw * whole_v[-1]).sum())
    return int(order_v[place])


def _penalized(scores_v: Tensor, earlier_t: Tensor, penalty: float) -> Tensor:
    if penalty == 1 or not len(earlier_t):
        return scores_v
    seen = earlier_t.unique()
    seen = seen[seen < len(scores_v)]
    found = scores_v[seen]
    scores_v = scores_v.clone()
    scores_v[seen] = torch.where(found < 0, found * penalty, found / penalty)
    return scores_v


class TokenChoice(LogitsProcessor):
    """Leaves the chosen token of each row, so that greedy decoding takes it.

    Args:
        sampling: how tokens are chosen.
        seeds: of the rows.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self._sampling = sampling
        self._rngs = [token_rng(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits (b, v), of which one per row is finite, for new ids (b, t) so far."""
        chosen_bv = torch.full_like(scores, -torch.inf)
        for row, (earlier_t, scores_v) in enumerate(zip(input_ids, scores, strict=True)):
            chosen_bv[row, self.choose(row, earlier_t, scores_v)] = 0.0
        return chosen_bv

    def choose(self, row: int, earlier_t: Tensor, scores_v: Tensor) -> int:
        """Return the next token of a row."""
        return choose_token(scores_v, earlier_t, self._sampling, self._rngs[row])


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of some texts in it."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
