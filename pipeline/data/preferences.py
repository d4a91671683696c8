"""Preferences to examples: the sequences that a sample's chosen and rejected answers give.

They share the sample's media, which are decoded and encoded once, whatever the sequences are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum

import numpy as np

from etl.storage.schema import Sample, SampleError, Turn
from model.batch import IGNORED
from model.spec.rlhf import Dpo, Dress, Kto, Preference
from pipeline.data.chat_template import with_feedback
from pipeline.data.encode import Example, MediumInput, SampleEncoder
from pipeline.data.tokenize import SampleLength, SampleTokenizer, TokenizedSample


class Role(IntEnum):
    """What a sequence is to its sample."""

    NONE = -1
    """A dummy's, where a rank has no sample."""
    CHOSEN = 0
    """The preferred answer."""
    REJECTED = 1
    """The other answer to the same prompt."""
    CORRUPTED = 2
    """The preferred answer, given a corrupted image."""
    REFINED = 3
    """The preferred answer, after the other one and its critique."""
    SAMPLED = 4
    """An answer of the model's own (`pipeline.train.rollouts`)."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """One sequence before it is tokenized; the last turn is its target."""

    role: Role
    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class TokenizedSequence:
    """One sequence of a sample; only its last answer is a target."""

    role: Role
    tokens: TokenizedSample


def dialogues(
    objective: Preference,
    sample_id: str,
    turns: Sequence[Turn],
    rejected: Sequence[Turn],
    feedback: Sequence[Turn],
) -> list[Dialogue]:
    """Return the sequences of a sample of preferences, in an order that depends on nothing else.

    Raises:
        SampleError: it lacks what the objective learns from.
    """
    if not turns or turns[-1].role != "assistant":
        if turns and rejected and isinstance(objective, Kto):  # a thumb down
            return [Dialogue(role=Role.REJECTED, turns=(*turns, *rejected))]
        raise SampleError(f"sample {sample_id}: the last turn is not the assistant's")
    chosen, prompt = tuple(turns), tuple(turns[:-1])
    if not rejected and not isinstance(objective, Kto):
        raise SampleError(f"sample {sample_id}: has no rejected answer")
    other = (*prompt, *rejected)
    if isinstance(objective, Dress):
        return _with_critiques(objective, sample_id, chosen, rejected, feedback)
    found = [Dialogue(role=Role.CHOSEN, turns=chosen)]
    if rejected:
        found.append(Dialogue(role=Role.REJECTED, turns=other))
    if isinstance(objective, Dpo) and objective.media_weight:
        found.append(Dialogue(role=Role.CORRUPTED, turns=chosen))
    return found


def _with_critiques(
    objective: Dress,
    sample_id: str,
    chosen: tuple[Turn, ...],
    rejected: Sequence[Turn],
    feedback: Sequence[Turn],
) -> list[Dialogue]:
    critique = "\n".join(turn.text for turn in feedback)
    if not critique:
        raise SampleError(f"sample {sample_id}: its rejected answer has no feedback")
    *prompt, answer = chosen
    found = [
        Dialogue(role=Role.CHOSEN, turns=(*with_feedback(prompt, objective.good), answer)),
        Dialogue(role=Role.REJECTED, turns=(*with_feedback(prompt, critique), *rejected)),
    ]
    if objective.refinement:
        turns = (*prompt, *rejected, Turn(role="user", text=critique), answer)
        found.append(Dialogue(role=Role.REFINED, turns=turns))
    return found


class PreferenceTokenizer:
    """Tokenizes the sequences of samples of preferences, without reading media.

    Args:
        tokenizer: of one dialogue.
        objective: which sequences there are.
    """

    columns: tuple[str, ...] = ("id", "turns", "media.kind", "rejected", "feedback")
    """Of the shards, the arguments of `length`."""

    def __init__(self, tokenizer: SampleTokenizer, objective: Preference) -> None:
        self._tokenizer, self._objective = tokenizer, objective

    @property
    def key(self) -> str:
        """The sha256 of all that determines the tokens."""
        own = json.dumps([self._tokenizer.key, asdict(self._objective)], sort_keys=True)
        return hashlib.sha256(own.encode()).hexdigest()

    def tokenize(
        self,
        sample_id: str,
        turns: Sequence[Turn],
        kinds: Sequence[str],
        rejected: Sequence[Turn],
        feedback: Sequence[Turn],
    ) -> list[TokenizedSequence]:
        """Tokenize each sequence, truncated; only its last answer is a target.

        Raises:
            SampleError: as `SampleTokenizer.tokenize`, or the sample lacks an answer or feedback.
        """
        found = []
        for one in dialogues(self._objective, sample_id, turns, rejected, feedback):
            tokens = self._tokenizer.tokenize(sample_id, one.turns, kinds)
            tokens.labels[: tokens.context] = [IGNORED] * min(tokens.context, len(tokens.labels))
            if not tokens.num_targets:
                raise SampleError(f"sample {sample_id}: nothing is left of its answer")
            found.append(TokenizedSequence(role=one.role, tokens=tokens))
        return found

    def length(
        self,
        sample_id: str,
        turns: Sequence[Turn],
        kinds: Sequence[str],
        rejected: Sequence[Turn],
        feedback: Sequence[Turn],
    ) -> SampleLength:
        """Return the length of all sequences together, or why the sample cannot be used.

        A medium counts as often as it is encoded: once, and once more if it is corrupted.
        """
        try:
            found = self.tokenize(sample_id, turns, kinds, rejected, feedback)
        except SampleError as error:
            return SampleLength(tokens=0, targets=0, skip_reason=str(error))
        encoded = [found[0], *(one for one in found[1:] if one.role is Role.CORRUPTED)]
        return SampleLength(
            tokens=sum(len(one.tokens.ids) for one in found),
            targets=sum(one.tokens.num_targets for one in found),
            branch_kinds=tuple(kind for one in encoded for kind in one.tokens.branch_kinds),
        )


class PreferenceEncoder:
    """Encodes samples of preferences: all sequences of one as one example.

    Args:
        encoder: of one dialogue; it decodes the media.
        tokenizer: of the sequences.
        seed: of what is random in corrupted images.
    """

    seq2seq = False
    dummy_roles = (int(Role.NONE),)

    def __init__(
        self, encoder: SampleEncoder, tokenizer: PreferenceTokenizer, *, seed: int
    ) -> None:
        self._encoder, self._tokenizer, self._seed = encoder, tokenizer, seed

    def tokenize(self, sample: Sample) -> list[TokenizedSequence]:
        """Tokenize a sample for `encode`; raises SampleError as `PreferenceTokenizer` does."""
        kinds = [medium.kind for medium in sample.media]
        return self._tokenizer.tokenize(
            sample.id, sample.turns, kinds, sample.rejected, sample.feedback
        )

    def encode(
        self,
        sample: Sample,
        tokenized: Sequence[TokenizedSequence] | None = None,
        *,
        position: int = 0,
    ) -> Example:
        """Encode a sample; `position` in the run's stream seeds what is random.

        Raises:
            SampleError: as `tokenize`, or media that cannot be decoded or corrupted.
        """
        parts: list[tuple[Role, Example]] = []
        for one in tokenized if tokenized is not None else self.tokenize(sample):
            corrupted = one.role is Role.CORRUPTED
            rng = np.random.default_rng((self._seed, position)) if corrupted else None
            # Media are looked up in the first sequence unless they differ from its own.
            known = () if corrupted or not parts else parts[0][1].media
            parts.append((one.role, self._encoder.encode_sequence(sample, one.tokens, known, rng)))
        return join_sequences(parts)


def join_sequences(parts: Sequence[tuple[Role, Example]]) -> Example:
    """Return the sequences end to end, with each medium once."""
    media: list[MediumInput] = []
    order: list[int] = []
    starts: list[int] = []
    length = 0
    for _, part in parts:
        starts.append(length)
        for medium in part.media:
            same = [number for number, one in enumerate(media) if one.is_input_of(medium)]
            order.append(same[0] if same else len(media))
            if not same:
                shifted = replace(medium, start=medium.start + length, first=medium.first + length)
                media.append(shifted)
        length += len(part.ids)
    return Example(
        ids=[number for _, part in parts for number in part.ids],
        labels=[number for _, part in parts for number in part.labels],
        kinds=[kind for _, part in parts for kind in part.kinds],
        media=tuple(media),
        generation_targets=tuple(one for _, part in parts for one in part.generation_targets),
        media_order=tuple(order),
        sequence_starts=tuple(starts),
        roles=tuple(int(role) for role, _ in parts),
    )
