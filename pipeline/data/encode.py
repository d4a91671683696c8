"""One sample to one training row: prompt, tokens, labels, places of media, encoders' inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS, Medium, Sample, SampleError, Turn
from model.build import preprocess
from model.pretraining.build import SentenceReader
from model.spec import InputBranchSpec, ModelSpec
from model.spec.qformer import QFormer
from pipeline.data.chat_template import assistant_text
from pipeline.data.features import FeatureReader, NoFeatures
from pipeline.data.generation_targets import GenerationTarget, GenerationTargetEncoder
from pipeline.data.readers import read
from pipeline.data.tokenize import SampleTokenizer, TokenizedSample


@dataclass(frozen=True, kw_only=True)
class MediumInput:
    """One medium of a row.

    Args:
        kind: of medium.
        start: the token before which it begins, what stands before it included.
        first: the first of its places.
        values: the encoder's input (f, *shape); None where its features are known.
        text: the instruction's ids, for projectors that read it; None for the others.
        features: what the encoder makes of it (f, n, d); None where that is not known.
        key: what its features are to be kept under; empty where none are kept.
    """

    kind: str
    start: int
    first: int
    input_values: Tensor | None
    text: tuple[int, ...] | None = None
    features: Tensor | None = None
    key: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One encoded sample; t tokens, media in reading order.

    Args:
        ids, labels: t token ids, and the same where they are targets, else `IGNORED`.
        kinds: per token the kind of medium whose place it is, or "" for text.
        media: one entry a medium that goes in.
        generation_targets: one entry a medium that comes out.
        context: tokens before the last answer.
        answer: what a seq2seq backbone's decoder is to say; None for a causal one.
        sentence: what the assistant says, in the vocabulary of who reads sentences, if anyone.
        id: the sample's, for people.
        source: the number of the data folder that it lies in.
    """

    ids: list[int]
    labels: list[int]
    kinds: list[str]
    media: tuple[MediumInput, ...] = ()
    generation_targets: tuple[GenerationTarget, ...] = ()
    context: int = 0
    answer: list[int] | None = None
    sentence: tuple[int, ...] = ()
    id: str = ""
    source: int = 0


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
        features: which media's features are known.
        drawing: encodes what the assistant draws, in a stage that learns it.

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
        features: FeatureReader | None = None,
        drawing: GenerationTargetEncoder | None = None,
    ) -> None:
        self._features = features or NoFeatures()
        self._drawing = drawing
        self._slots: dict[str, InputBranchSpec] = {slot.modality: slot for slot in spec.inputs}
        outputs = tuple(drawing.slots.values()) if drawing else ()
        self._drafter = SampleTokenizer(
            spec, tokenizer, prompt=prompt, max_tokens=max_tokens, outputs=outputs
        )
        self._text_tokenizer = text_tokenizer
        self._sentences = sentences
        self._prompt = prompt
        self.seq2seq = self._drafter.seq2seq
        self.end = self._drafter.end

    def draft(self, sample: Sample) -> TokenizedSample | None:
        """Lay out a sample's text for `row`; None where a sentence is read, which `row` does.

        Raises:
            SampleError: as `row` does, but for media that cannot be decoded.
        """
        if self._sentences is not None:
            return None
        kinds = [medium.kind for medium in sample.media]
        return self._drafter.draft(sample.id, sample.turns, kinds, cut=True)

    def row(
        self, sample: Sample, draft: TokenizedSample | None = None, *, position: int = 0
    ) -> Example:
        """Encode a sample for training: the assistant's turns are the targets.

        Args:
            sample: what is encoded.
            draft: its text, if it is laid out already.
            position: of the sample in the run's stream, which its noise is drawn by.

        Raises:
            SampleError: media that cannot be decoded or that the model does not take, or
                a sample whose media do not fit in `max_tokens`; where sentences are read, one
                that is no pair of a medium and a sentence.
        """
        if self._sentences is None:
            return self._encode(sample, sample.turns, cut=True, draft=draft, position=position)
        return self._pair(sample, self._sentences)

    def _pair(self, sample: Sample, reader: SentenceReader) -> Example:
        """Encode a medium and what is said of it, or with the prompt `sentences` that alone."""
        text = assistant_text(sample.turns)
        if not text:
            raise SampleError(f"sample {sample.id}: the assistant says nothing")
        if self._prompt == "sentences":
            asked = Turn(role="user", text=PLACEHOLDERS[reader.kind])
            turns = (asked, Turn(role="assistant", text=text))
            draft = self._drafter.draft(sample.id, turns, [reader.kind], cut=True)
            [(start, first)] = draft.starts
            unread = torch.zeros(0)
            media = MediumInput(kind=reader.kind, start=start, first=first, input_values=unread)
            return replace(_row(draft, (media,)), sentence=reader.ids(text))
        kinds = [medium.kind for medium in sample.media]
        if kinds != [reader.kind] and (kinds or reader.pairs):
            raise SampleError(
                f"sample {sample.id}: {len(sample.media)} media, want one {reader.kind}"
            )
        row = self._encode(sample, sample.turns, cut=True)
        return replace(row, sentence=reader.ids(text))

    def question(self, sample: Sample) -> Example:
        """Encode everything before the last answer, for the model to go on from.

        Raises:
            SampleError: as `row` does, or the last turn is not the assistant's, or draws.
        """
        if sample.turns[-1].role != "assistant":
            raise SampleError(f"sample {sample.id}: the last turn is not the assistant's")
        if PLACEHOLDER_PATTERN.search(sample.turns[-1].text):
            raise SampleError(f"sample {sample.id}: its answer holds media, want text")
        turns = (*sample.turns[:-1], Turn(role="assistant", text=""))
        return self._encode(sample, turns, cut=False)

    def _encode(
        self,
        sample: Sample,
        turns: Sequence[Turn],
        *,
        cut: bool,
        draft: TokenizedSample | None = None,
        position: int = 0,
    ) -> Example:
        if draft is None:
            kinds = [medium.kind for medium in sample.media]
            draft = self._drafter.draft(sample.id, turns, kinds, cut=cut)
        media: list[MediumInput] = []
        targets: list[GenerationTarget] = []
        parts = zip(
            sample.media, draft.ways, draft.starts, _instructions(sample.turns), strict=True
        )
        for number, (medium, way, places, instruction) in enumerate(parts):
            if way == medium.kind:
                media.append(self._placed(sample, medium, places, instruction))
            else:
                assert self._drawing is not None
                targets.append(self._drawing.placed(sample, number, way, position))
        return replace(_row(draft, tuple(media)), generation_targets=tuple(targets))

    def _placed(
        self, sample: Sample, medium: Medium, places: tuple[int, int], instruction: str
    ) -> MediumInput:
        """Return a medium with its features if they are known, or else decoded."""
        found = self._features.find(medium)
        known = found is not None and found.features is not None
        start, first = places
        return MediumInput(
            kind=medium.kind,
            start=start,
            first=first,
            input_values=None if known else self._values(sample, medium),
            text=self._text_ids(self._slots[medium.kind], instruction),
            features=found.features if found else None,
            key=found.key if found else b"",
        )

    def _text_ids(self, slot: InputBranchSpec, instruction: str) -> tuple[int, ...] | None:
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
            return preprocess(slot.encoder, read(medium, slot))
        except (OSError, ValueError) as error:
            raise SampleError(
                f"sample {sample.id}: its {medium.kind} cannot be decoded ({error})"
            ) from error


def _row(draft: TokenizedSample, media: tuple[MediumInput, ...]) -> Example:
    return Example(
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
