"""One sample to one training row: prompt, tokens, labels, places of media, encoders' inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS, Medium, Sample, SampleError, Turn
from model.batch import IGNORED
from model.build import prepare
from model.objectives.build import SentenceReader
from model.spec import InputSlot, ModelSpec
from model.spec.qformer import QFormer
from pipeline.data.prompts import Piece, Segment, chat, plain, said, without_special
from pipeline.data.readers import read

_KINDS = {placeholder: kind for kind, placeholder in PLACEHOLDERS.items()}


@dataclass(frozen=True, kw_only=True)
class PlacedMedium:
    """One medium of a row.

    Args:
        kind: of medium.
        start: the token before which it begins, what stands before it included.
        first: the first of its places.
        values: the encoder's input (f, *shape).
        text: the instruction's ids, for projectors that read it; None for the others.
    """

    kind: str
    start: int
    first: int
    values: Tensor
    text: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One encoded sample; t tokens, media in reading order.

    Args:
        ids, labels: t token ids, and the same where they are targets, else `IGNORED`.
        kinds: per token the kind of medium whose place it is, or "" for text.
        media: one entry a medium.
        context: tokens before the last answer.
        answer: what a seq2seq backbone's decoder is to say; None for a causal one.
        sentence: what the assistant says, in the vocabulary of who reads sentences, if anyone.
        id: the sample's, for people.
    """

    ids: list[int]
    labels: list[int]
    kinds: list[str]
    media: tuple[PlacedMedium, ...] = ()
    context: int = 0
    answer: list[int] | None = None
    sentence: tuple[int, ...] = ()
    id: str = ""


class SampleEncoder:
    """Encodes samples for one model and one kind of prompt.

    Args:
        spec: the model; says which media it takes and how many tokens each becomes.
        tokenizer: the backbone's, a fast one.
        prompt: `plain`, `chat` or `sentences`, see `model.spec.Stage`.
        max_tokens: longer rows are cut at the end; a medium that would be cut is an error.
        text_tokenizer: of the projectors that read the instruction, if there are any.
        sentences: of the part that reads what the assistant says, if there is one. Each sample
            then is a sentence and one medium of its kind, or none where that is of use, too.

    Attributes:
        end: the tokens that end an answer.
        seq2seq: whether a decoder answers, and only the last turn.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: str,
        max_tokens: int,
        text_tokenizer: PreTrainedTokenizerBase | None = None,
        sentences: SentenceReader | None = None,
    ) -> None:
        self._spec = spec
        self._slots: dict[str, InputSlot] = {slot.modality: slot for slot in spec.inputs}
        self._tokenizer = tokenizer
        self._text_tokenizer = text_tokenizer
        self._sentences = sentences
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._special = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})
        self.seq2seq = spec.backbone.seq2seq
        self._last_only = self.seq2seq or spec.backbone.prefix_lm
        self.end = self._end_ids(spec.backbone.template.end, prompt)

    def row(self, sample: Sample) -> Row:
        """Encode a sample for training: the assistant's turns are the targets.

        Raises:
            SampleError: media that cannot be decoded or that the model does not take, or
                a sample whose media do not fit in `max_tokens`; where sentences are read, one
                that is no pair of a medium and a sentence.
        """
        if self._sentences is None:
            return self._encode(sample, sample.turns, cut=self._max_tokens)
        return self._pair(sample, self._sentences)

    def _pair(self, sample: Sample, reader: SentenceReader) -> Row:
        """Encode a medium and what is said of it, or with the prompt `sentences` that alone."""
        text = said(sample.turns)
        if not text:
            raise SampleError(f"sample {sample.id}: the assistant says nothing")
        if self._prompt == "sentences":
            asked = Turn(role="user", text=PLACEHOLDERS[reader.kind])
            draft = self._draft((asked, Turn(role="assistant", text=text)))
            draft.cut(self._max_tokens, sample.id)
            [(start, first)] = draft.starts
            unread = torch.zeros(0)
            media = PlacedMedium(kind=reader.kind, start=start, first=first, values=unread)
            return replace(_row(draft, (media,)), sentence=reader.ids(text))
        kinds = [medium.kind for medium in sample.media]
        if kinds != [reader.kind] and (kinds or reader.pairs):
            raise SampleError(
                f"sample {sample.id}: {len(sample.media)} media, want one {reader.kind}"
            )
        row = self._encode(sample, sample.turns, cut=self._max_tokens)
        return replace(row, sentence=reader.ids(text))

    def question(self, sample: Sample) -> Row:
        """Encode everything before the last answer, for the model to go on from.

        Raises:
            SampleError: as `row` does, or the last turn is not the assistant's.
        """
        if sample.turns[-1].role != "assistant":
            raise SampleError(f"sample {sample.id}: the last turn is not the assistant's")
        turns = (*sample.turns[:-1], Turn(role="assistant", text=""))
        return self._encode(sample, turns, cut=None)

    def _encode(self, sample: Sample, turns: Sequence[Turn], cut: int | None) -> Row:
        for medium in sample.media:
            if medium.kind not in self._slots:
                raise SampleError(
                    f"sample {sample.id}: holds {medium.kind}, "
                    f"the model takes {', '.join(self._slots)}"
                )
        draft = self._draft(turns)
        if len(draft.starts) != len(sample.media):
            raise SampleError(
                f"sample {sample.id}: {len(sample.media)} media, {len(draft.starts)} used"
            )
        if cut is not None:
            draft.cut(cut, sample.id)
        instructions = _instructions(sample.turns)
        media = tuple(
            PlacedMedium(
                kind=medium.kind,
                start=start,
                first=first,
                values=self._values(sample, medium),
                text=self._text_ids(self._slots[medium.kind], instruction),
            )
            for medium, (start, first), instruction in zip(
                sample.media, draft.starts, instructions, strict=True
            )
        )
        return _row(draft, media)

    def _draft(self, turns: Sequence[Turn]) -> _Draft:
        """Lay out tokens and places; some backbones answer only the last turn."""
        draft = _Draft()
        if (start := self._tokenizer.bos_token_id) is not None:
            draft.add([start], learnt=False)
        template = self._spec.backbone.template
        pieces = chat(turns, template) if self._prompt == "chat" else plain(turns)
        last = max((i for i, piece in enumerate(pieces) if piece.learnt), default=None)
        if self._last_only:
            pieces = [replace(p, learnt=p.learnt and i == last) for i, p in enumerate(pieces)]
        for number, piece in enumerate(pieces):
            ids = self.end if piece.answers and piece.segments else []
            if number == last:
                draft.context = len(draft.ids)
            if self.seq2seq and number == last:
                draft.answer = [*self._piece_ids(piece), *ids]
                continue
            self._lay(draft, piece)
            draft.add(ids, learnt=piece.learnt)
        if self.seq2seq:
            draft.add([self._tokenizer.eos_token_id], learnt=False)  # as T5 ends every input
        return draft

    def _lay(self, draft: _Draft, piece: Piece) -> None:
        """Add a piece's tokens and places."""
        for segment in without_special(piece, self._special):
            if segment.own:
                own = self._tokenizer.convert_tokens_to_ids(segment.text)
                draft.add([own], learnt=piece.learnt)
                continue
            for kind, part in _split(segment.text):
                if kind:
                    self._place(draft, self._slots[kind])
                else:
                    draft.add(self._ids(part), learnt=piece.learnt)

    def _piece_ids(self, piece: Piece) -> list[int]:
        """Return the tokens of an answer, which holds no media."""
        draft = _Draft()
        self._lay(draft, piece)
        return draft.ids

    def _end_ids(self, end: str | None, prompt: str) -> list[int]:
        """Return what ends an answer: the template's own words, or the end-of-sequence token."""
        if end is None or prompt != "chat":
            return [self._tokenizer.eos_token_id]
        return self._piece_ids(
            Piece(segments=(Segment(text=end, own=True),), answers=True, learnt=True)
        )

    def _place(self, draft: _Draft, slot: InputSlot) -> None:
        start = len(draft.ids)
        draft.add(self._ids(slot.before), learnt=False)
        draft.starts.append((start, len(draft.ids)))
        draft.add([0] * self._spec.places(slot), learnt=False, kind=slot.modality)
        draft.add(self._ids(slot.after), learnt=False)

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _text_ids(self, slot: InputSlot, instruction: str) -> tuple[int, ...] | None:
        projector = slot.projector
        if not isinstance(projector, QFormer) or not projector.reads_text:
            return None
        if self._text_tokenizer is None:
            raise ValueError(f"slot {slot.modality!r} reads text: a text_tokenizer is needed")
        ids: list[int] = self._text_tokenizer(
            instruction, truncation=True, max_length=projector.max_text
        )["input_ids"]
        return tuple(ids)

    def _values(self, sample: Sample, medium: Medium) -> Tensor:
        slot = self._slots[medium.kind]
        try:
            return prepare(slot.encoder, read(medium, slot))
        except (OSError, ValueError) as error:
            raise SampleError(
                f"sample {sample.id}: its {medium.kind} cannot be decoded ({error})"
            ) from error


class _Draft:
    """A row while it is laid out."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.kinds: list[str] = []
        self.starts: list[tuple[int, int]] = []
        self.context = 0
        self.answer: list[int] | None = None

    def add(self, ids: list[int], *, learnt: bool, kind: str = "") -> None:
        """Append tokens, or places of a medium of `kind`."""
        self.ids += ids
        self.labels += ids if learnt else [IGNORED] * len(ids)
        self.kinds += [kind] * len(ids)

    def cut(self, most: int, sample: str) -> None:
        """Cut what is longer than `most` tokens; raises SampleError for a medium that is cut."""
        if any(self.kinds[most:]) or any(first > most for _, first in self.starts):
            raise SampleError(f"sample {sample}: its media do not fit in {most} tokens")
        self.ids, self.labels, self.kinds = self.ids[:most], self.labels[:most], self.kinds[:most]
        if self.answer is not None:
            self.answer = self.answer[:most]


def _row(draft: _Draft, media: tuple[PlacedMedium, ...]) -> Row:
    return Row(
        ids=draft.ids,
        labels=draft.labels,
        kinds=draft.kinds,
        media=media,
        context=min(draft.context, len(draft.ids)),
        answer=draft.answer,
    )


def _instructions(turns: Sequence[Turn]) -> list[str]:
    """Return, per medium in reading order, what is said in the turn that holds it."""
    return [
        PLACEHOLDER_PATTERN.sub("", turn.text).strip()
        for turn in turns
        for _ in PLACEHOLDER_PATTERN.findall(turn.text)
    ]


def _split(text: str) -> list[tuple[str, str]]:
    """Split a text at its placeholders: (kind, "") for a medium, ("", text) for text."""
    parts: list[tuple[str, str]] = []
    end = 0
    for found in PLACEHOLDER_PATTERN.finditer(text):
        if found.start() > end:
            parts.append(("", text[end : found.start()]))
        parts.append((_KINDS[found.group()], ""))
        end = found.end()
    if end < len(text):
        parts.append(("", text[end:]))
    return parts
