"""Decoding of answers that hold media: the backbone decides where, signal tokens stand for them.

One pass of the backbone gives text and conditions: transformers' own `generate` runs with hooks
that add the signal tokens to its vocabulary and keep the hidden states that predict the tokens.

Shapes: b sequences, t new tokens, s positions of a call, d the backbone's width, n signal tokens of
a medium, v vocabulary (followed by the signal tokens), l and w positions and width of a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from model.batch import Batch
from model.multimodal_lm import MultimodalLM
from model.output_branch import OutputBranch, signal_ids
from model.sampling import Sampling, TokenChoice


class Condition(NamedTuple):
    """A medium that the backbone put into an answer.

    Attributes:
        row: index of the sequence.
        start: index of its first signal token among the new tokens.
        modality: of the medium.
        condition_1lw: H_X, for the generator of that modality.
    """

    row: int
    start: int
    modality: str
    condition_1lw: Tensor


class Decoded(NamedTuple):
    """Answers: new ids (b, t), in which signal tokens follow the vocabulary, and their media.

    After a medium at an answer's end there may be a token more than was asked for.
    """

    ids_bt: Tensor
    media: tuple[Condition, ...]


@torch.no_grad()
def decode(
    model: MultimodalLM,
    batch: Batch,
    *,
    max_new_tokens: int,
    pad_id: int,
    end_ids: Sequence[int],
    sampling: Sampling | None = None,
    seeds: Sequence[int] = (),
    streamer: BaseStreamer | None = None,
    stop: Sequence[StoppingCriteria] = (),
    used: Collection[str] = (),
    most: Callable[[int], int] | None = None,
) -> Decoded:
    """Continue left-padded prompts with text and media.

    When the first signal token of an output branch is chosen, the others follow. A medium that
    begins within `max_new_tokens` is completed.

    Args:
        model: with output branches.
        batch: the prompts.
        max_new_tokens: longest answer, media that begin at its end apart.
        pad_id: after the end of an answer.
        end_ids: of which any ends an answer.
        sampling: how tokens are chosen; by default the most likely ones.
        seeds: of the answers, unless the most likely tokens are taken.
        streamer: gets the ids of a single prompt's answer as they are generated.
        stop: say which answers are complete otherwise.
        used: kinds of media that any rank uses in this call, see `MultimodalLM.generate`.
        most: returns the greatest number of all ranks, where they decode together (ZeRO-3) and so
            call each projector equally often; None where each decodes for itself.
    """
    branches = list(model.output_branches().values())
    ids = signal_ids([branch.spec for branch in branches], model.spec.backbone.vocabulary)
    longest = max(len(each) for each in ids.values())
    signals = _Signals(model, branches)
    with signals.hooked():
        ids_bt = model.generate(
            batch,
            max_new_tokens=max_new_tokens + longest + 1,
            pad_id=pad_id,
            end_ids=end_ids,
            streamer=streamer,
            stop=[_Limit(max_new_tokens, signals.first_id), *stop],
            choose=_Choice([*ids.values()], sampling or Sampling(), seeds, max_new_tokens),
            used=used,
            synced=most is not None,
        )
    states_btd = torch.stack(signals.states, dim=1)
    media: list[Condition] = []
    for branch in branches:
        first = ids[branch.spec.modality][0]
        starts = (ids_bt == first).nonzero().tolist()
        missing = 0 if most is None else most(len(starts)) - len(starts)
        media += [
            Condition(
                row, start, branch.spec.modality, condition_of(branch, states_btd[row], start)
            )
            for row, start in starts
        ]
        for _ in range(missing):
            branch.condition(torch.zeros_like(branch.signal_embeddings())[None])
    return Decoded(ids_bt, tuple(sorted(media, key=lambda medium: medium[:2])))


class _Signals:
    """Signal tokens as a part of the backbone's vocabulary, while it generates.

    Args:
        model: whose backbone is hooked.
        branches: its output branches, in the order of their signal tokens.

    Attributes:
        first_id: id of the first signal token; the vocabulary ends before it.
        states: per new token the hidden states (b, d) that predict it.
    """

    def __init__(self, model: MultimodalLM, branches: Sequence[OutputBranch]) -> None:
        self._backbone: Any = model.backbone
        self._branches = branches
        self._embeddings_nd = torch.cat([branch.signal_embeddings() for branch in branches])
        self.first_id = model.spec.backbone.vocabulary
        self.states: list[Tensor] = []

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hook the backbone's input and output embeddings for the duration of the block."""
        embeddings = self._backbone.get_input_embeddings()
        handles = [
            embeddings.register_forward_pre_hook(self._only_words),
            embeddings.register_forward_hook(self._embed),
            self._backbone.get_output_embeddings().register_forward_hook(self._logits),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _only_words(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        (self._ids_bs,) = args
        return (self._ids_bs.clamp(max=self.first_id - 1),)

    def _embed(self, _: nn.Module, __: object, words_bsd: Tensor) -> Tensor:
        number_bs = (self._ids_bs - self.first_id).clamp(min=0)
        signals_bsd = self._embeddings_nd[number_bs].to(words_bsd)
        return torch.where((self._ids_bs >= self.first_id)[..., None], signals_bsd, words_bsd)

    def _logits(self, _: nn.Module, args: tuple[Any, ...], logits_bsv: Tensor) -> Tensor:
        (hidden_bsd,) = args
        self.states.append(hidden_bsd[:, -1])
        signals = [branch.head(hidden_bsd).to(logits_bsv) for branch in self._branches]
        return torch.cat([logits_bsv, *signals], dim=-1)


def condition_of(branch: OutputBranch, states_td: Tensor, start: int) -> Tensor:
    """Return the condition (1, l, w) of a medium of an answer.

    Args:
        branch: of the medium.
        states_td: per new token the hidden state that predicts it, one after the medium included.
        start: index of the medium's first signal token.
    """
    signals_nd = branch.signal_embeddings()
    if branch.spec.projector.states == "before":
        hidden_nd = states_td[start : start + len(signals_nd)]
    else:  # a token's own states predict the token after it
        hidden_nd = states_td[start + 1 : start + 1 + len(signals_nd)] + signals_nd
    return branch.condition(hidden_nd[None])


def next_signals(media: Iterable[Sequence[int]]) -> dict[int, int]:
    """Return the signal token that follows each one but the last, given the ids of each branch."""
    return {before: after for ids in media for before, after in pairwise(ids)}


class _Choice(LogitsProcessor):
    """Leaves one token per row: the next signal token of a medium, or a chosen one.

    Args:
        media: the ids of the signal tokens of each branch.
        sampling: how other tokens are chosen.
        seeds: of the rows.
        limit: number of new tokens after which no medium may begin.
    """

    def __init__(
        self,
        media: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        limit: int,
    ) -> None:
        self._next = next_signals(media)
        self._first = [ids[0] for ids in media]
        self._later = [number for ids in media for number in ids[1:]]
        self._limit = limit
        self._other = None if sampling.is_greedy else TokenChoice(sampling, seeds)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits (b, v), in which nothing but possible tokens is finite."""
        scores_bv = scores.clone()
        scores_bv[:, self._later] = -torch.inf
        if input_ids.shape[1] >= self._limit:
            scores_bv[:, self._first] = -torch.inf
        last = input_ids[:, -1].tolist() if input_ids.shape[1] else []
        for row in range(len(scores_bv)):
            chosen = self._next.get(last[row]) if last else None
            if chosen is None and self._other is not None:
                chosen = self._other.choose(row, input_ids[row], scores_bv[row])
            if chosen is not None:
                scores_bv[row] = -torch.inf
                scores_bv[row, chosen] = 0.0
        return scores_bv


class _Limit(StoppingCriteria):
    """Ends an answer at its limit, but not within a medium nor right after it.

    Args:
        limit: number of new tokens.
        first_id: of the first signal token.
    """

    def __init__(self, limit: int, first_id: int) -> None:
        self._limit, self._first_id = limit, first_id

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Return for each row (b,) of new ids whether it is complete."""
        return (input_ids[:, -1] < self._first_id) & (input_ids.shape[1] >= self._limit)
