"""One sample to one `Example`: token ids, labels, and the decoded media as encoder inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError
from etl.storage.schema import (
    PLACEHOLDER_PATTERN,
    PLACEHOLDERS,
    Medium,
    Sample,
    SampleError,
    Turn,
    words_of,
)
from model.build import preprocess
from model.pretraining.build import SentenceReader
from model.spec import InputBranchSpec, ModelSpec
from model.spec.qformer import QFormer
from pipeline.data.chat_template import assistant_text, with_feedback
from pipeline.data.features import FeatureReader
from pipeline.data.generation_targets import GenerationTarget, GenerationTargetEncoder
from pipeline.data.readers import AudioEncoderSpec, read_medium
from pipeline.data.readers.corrupted import corrupt
from pipeline.data.tokenize import SampleTokenizer, TokenizedSample

_UNHEARD_SECONDS = 0.05
"""At the end of a sound, which are not reported as cut."""


@dataclass(frozen=True, kw_only=True)
class MediumInput:
    """One input medium of an example.

    Args:
        kind: of medium.
        start: the token at which it starts, including the text before it.
        first: its first position.
        input_values: the encoder's input (f, *shape); None where features are given.
        text: ids of the instruction, for projectors that read it; None for the others.
        features: the encoder's features (f, n, d) instead of its input.
        cut: how much of it the encoder does not take; empty if it takes all.
    """

    kind: str
    start: int
    first: int
    input_values: Tensor | None
    text: tuple[int, ...] | None = None
    features: Tensor | None = None
    cut: str = ""

    def is_input_of(self, other: MediumInput) -> bool:
        """Whether both are the same input, with the same instruction, so that one will do."""
        mine, theirs = (self.input_values, self.features), (other.input_values, other.features)
        return self.text == other.text and mine[0] is theirs[0] and mine[1] is theirs[1]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One encoded sample; t tokens, media in reading order.

    Args:
        ids, labels: t token ids, and the same where they are targets, else `IGNORED`.
        kinds: per token the kind of medium that its position belongs to, or "" for text.
        media: the input media.
        generation_targets: the media to be generated.
        context: tokens before the last answer.
        answer: the decoder's target of a seq2seq backbone; None for a causal one.
        sentence: the assistant's text in the vocabulary of the Q-Former's text half or of the
            P-Former; empty for other models.
        id: the sample's, for log lines.
        source: the index of its data folder.
        sequence_starts: where each sequence starts, of a sample that consists of several.
        roles: of these sequences, see `pipeline.data.preferences.Role`.
        media_order: the index into `media` of each occurrence of a medium, where some come again.
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
    sequence_starts: tuple[int, ...] = (0,)
    roles: tuple[int, ...] = ()
    media_order: tuple[int, ...] | None = None

    @property
    def cut(self) -> str:
        """Which media the encoders take in part, and how much; empty if they take all of each."""
        return "; ".join(medium.cut for medium in self.media if medium.cut)


class SampleEncoder:
    """Encodes samples for one model and one kind of prompt.

    Args:
        spec: the model; it determines the kinds of media and how many tokens each becomes.
        tokenizer: the backbone's, a fast one.
        prompt: `plain`, `chat` or `sentences`, see `model.spec.Stage`.
        max_tokens: longer samples are truncated; a medium that would be cut is an error.
        text_tokenizer: of the projectors that read the instruction, if there are any.
        sentences: of a Q-Former's text half or a P-Former. Each sample then is a sentence and one
            medium of the reader's kind; without `pairs`, a sentence alone is enough.
        features: reads features of some kinds of media instead of the media.
        generation_targets: encodes the media that the assistant generates, in a stage that trains
            generation.
        feedback: that answers are asked for with (DRESS), see `Stage.answer_feedback`.

    Attributes:
        stop_ids, stop_text: what ends an answer, see `SampleTokenizer`.
        seq2seq: whether the backbone has a decoder, which answers only the last turn.
        dummy_roles: none, since an example is one sequence.
        max_positions: how many tokens the backbone takes, prompt and answer together; None where
            its positions are relative.
    """

    dummy_roles: tuple[int, ...] = ()

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
        generation_targets: GenerationTargetEncoder | None = None,
        feedback: str = "",
    ) -> None:
        self._feedback = feedback
        self._features = features
        self._generation_targets = generation_targets
        self._inputs: dict[str, InputBranchSpec] = {b.modality: b for b in spec.inputs}
        outputs = tuple(generation_targets.branches.values()) if generation_targets else ()
        self._tokenizer = SampleTokenizer(
            spec, tokenizer, prompt=prompt, max_tokens=max_tokens, outputs=outputs
        )
        self._text_tokenizer = text_tokenizer
        self._sentences = sentences
        self._prompt = prompt
        self.seq2seq = self._tokenizer.seq2seq
        self.max_positions = None if self.seq2seq else self._tokenizer.max_positions
        self.stop_ids, self.stop_text = self._tokenizer.stop_ids, self._tokenizer.stop_text

    def tokenize(self, sample: Sample) -> TokenizedSample | None:
        """Tokenize a sample for `encode`; None with sentences, which `encode` tokenizes itself.

        Raises:
            SampleError: as `encode` does, except for media that cannot be decoded.
        """
        if self._sentences is not None:
            return None
        return self._tokenize(sample)

    def encode(
        self, sample: Sample, tokenized: TokenizedSample | None = None, *, position: int = 0
    ) -> Example:
        """Encode a sample for training: the assistant's turns are the targets.

        Args:
            sample: to encode.
            tokenized: the result of `tokenize`, if it is available already.
            position: of the sample in the run's stream; it seeds the noise of eq. 5.

        Raises:
            SampleError: media that cannot be decoded or that the model does not take, or
                a sample whose media do not fit in `max_tokens`; with sentences, a sample that is
                not a pair of a medium and a sentence.
        """
        if self._sentences is None:
            tokenized = tokenized or self._tokenize(sample)
            return self._encode(sample, tokenized, position=position)
        if self._prompt == "sentences":
            return self._encode_sentence(sample, self._sentences)
        return self._encode_pair(sample, self._sentences, position)

    def _encode_sentence(self, sample: Sample, reader: SentenceReader) -> Example:
        """Encode the assistant's text after the positions of a medium that is not encoded."""
        text = _sentence(sample)
        user = Turn(role="user", text=PLACEHOLDERS[reader.kind])
        turns = (user, Turn(role="assistant", text=text))
        tokenized = self._tokenizer.tokenize(sample.id, turns, [reader.kind])
        [(start, first)] = tokenized.media_starts
        empty = torch.zeros(0)
        media = MediumInput(kind=reader.kind, start=start, first=first, input_values=empty)
        return replace(_example(tokenized, (media,)), sentence=reader.ids(text))

    def _encode_pair(self, sample: Sample, reader: SentenceReader, position: int) -> Example:
        """Encode a medium and its sentence; a sample whose media are all generated has none."""
        if self._generation_targets is None:
            _sentence(sample)  # said before anything else that tokenization may find
        tokenized = self._tokenize(sample)
        pairs = zip(sample.media, tokenized.branch_kinds, strict=True)
        kinds = [medium.kind for medium, branch_kind in pairs if branch_kind == medium.kind]
        if sample.media and not kinds:
            return self._encode(sample, tokenized, position=position)
        text = _sentence(sample)
        if kinds != [reader.kind] and (kinds or reader.pairs):
            raise SampleError(
                f"sample {sample.id}: {len(sample.media)} media, want one {reader.kind}"
            )
        example = self._encode(sample, tokenized, position=position)
        return replace(example, sentence=reader.ids(text))

    def encode_sequence(
        self,
        sample: Sample,
        tokenized: TokenizedSample,
        known: Sequence[MediumInput] = (),
        corrupted: np.random.Generator | None = None,
    ) -> Example:
        """Encode one of several sequences of a sample, which share its media.

        Args:
            sample: the media's, and of the instructions.
            tokenized: the sequence.
            known: the media as another sequence has them already; none decodes them.
            corrupted: makes the media corrupted ones.

        Raises:
            SampleError: a medium cannot be decoded, or has no corrupted form.
        """
        texts = _instructions(sample.turns)
        columns = zip(sample.media, tokenized.media_starts, texts, strict=True)
        media = []
        for number, (medium, starts, text) in enumerate(columns):
            if known:
                media.append(replace(known[number], start=starts[0], first=starts[1]))
            else:
                media.append(self._medium_input(sample, medium, starts, text, corrupted))
        return _example(tokenized, tuple(media))

    def encode_prompt(
        self, sample: Sample, *, max_new_tokens: int = 0, asks_for_media: bool = False
    ) -> Example:
        """Encode everything before the last answer, for generation.

        Args:
            sample: to answer.
            max_new_tokens: the longest answer.
            asks_for_media: whether media are to be generated, so that a `plain` prompt keeps the
                user's last text.

        Raises:
            SampleError: as `encode` does, if the last turn is not text of the assistant, or if
                prompt and answer are longer than the backbone takes.
        """
        if not sample.turns or sample.turns[-1].role != "assistant":
            raise SampleError(f"sample {sample.id}: the last turn is not the assistant's")
        if PLACEHOLDER_PATTERN.search(sample.turns[-1].text):
            raise SampleError(f"sample {sample.id}: its answer holds media, want text")
        tokenized = self._tokenizer.tokenize_prompt(
            sample.id,
            with_feedback(sample.turns[:-1], self._feedback),
            _kinds(sample),
            max_new_tokens=max_new_tokens,
            asks_for_media=asks_for_media,
        )
        return self._encode(sample, tokenized)

    def _tokenize(self, sample: Sample) -> TokenizedSample:
        return self._tokenizer.tokenize(sample.id, sample.turns, _kinds(sample))

    def _encode(self, sample: Sample, tokenized: TokenizedSample, *, position: int = 0) -> Example:
        media: list[MediumInput] = []
        targets: list[GenerationTarget] = []
        columns = zip(
            sample.media,
            tokenized.branch_kinds,
            tokenized.media_starts,
            _instructions(sample.turns),
            strict=True,
        )
        for number, (medium, branch_kind, starts, instruction) in enumerate(columns):
            if branch_kind == medium.kind:
                media.append(self._medium_input(sample, medium, starts, instruction))
            else:
                assert self._generation_targets is not None
                targets.append(
                    self._generation_targets.encode(sample, number, branch_kind, position)
                )
        return replace(_example(tokenized, tuple(media)), generation_targets=tuple(targets))

    def _medium_input(
        self,
        sample: Sample,
        medium: Medium,
        starts: tuple[int, int],
        instruction: str,
        corrupted: np.random.Generator | None = None,
    ) -> MediumInput:
        """Return a medium, decoded or as features; with `corrupted`, only a part of it."""
        branch = self._inputs[medium.kind]
        input_values = features = None
        seconds = medium.duration
        try:
            cached = self._features is not None and medium.kind in self._features.kinds
            if cached and corrupted is None:
                assert self._features is not None
                features = self._features.medium(medium)
            else:
                raw = read_medium(medium, branch)
                raw = raw if corrupted is None else corrupt(raw, corrupted)
                input_values = preprocess(branch.encoder, raw)
                if isinstance(raw, np.ndarray) and isinstance(branch.encoder, AudioEncoderSpec):
                    seconds = len(raw) / branch.encoder.sample_rate
        except UserError:  # not of the medium, but of a file of features
            raise
        except (OSError, ValueError) as error:
            raise SampleError(
                f"sample {sample.id}: its {medium.kind} cannot be decoded ({error})"
            ) from error
        start, first = starts
        return MediumInput(
            kind=medium.kind,
            start=start,
            first=first,
            input_values=input_values,
            text=self._text_ids(branch, instruction),
            features=features,
            cut=_cut(branch, seconds),
        )

    def _text_ids(self, branch: InputBranchSpec, instruction: str) -> tuple[int, ...] | None:
        projector = branch.projector
        if not isinstance(projector, QFormer) or not projector.reads_text:
            return None
        if self._text_tokenizer is None:
            raise ValueError(f"input branch {branch.modality!r} reads text: want a text_tokenizer")
        ids: list[int] = self._text_tokenizer(
            instruction, truncation=True, max_length=projector.max_text
        )["input_ids"]
        return tuple(ids)


def without_answer(sample: Sample) -> Sample:
    """Return a sample whose last turn, the assistant's, is empty; its media are those before."""
    if not sample.turns:
        return sample
    held = len(PLACEHOLDER_PATTERN.findall(sample.turns[-1].text))
    return replace(
        sample,
        turns=(*sample.turns[:-1], replace(sample.turns[-1], text="")),
        media=sample.media[: len(sample.media) - held],
    )


def _cut(branch: InputBranchSpec, seconds: float | None) -> str:
    """Return how much of a sound its encoder does not hear; an empty text if it hears all."""
    heard = branch.heard_seconds
    if heard is None or seconds is None or seconds <= heard + _UNHEARD_SECONDS:
        return ""
    return f"{branch.modality} of {seconds:.1f} s, of which the encoder hears {heard:g} s"


def _example(tokenized: TokenizedSample, media: tuple[MediumInput, ...]) -> Example:
    return Example(
        ids=tokenized.ids,
        labels=tokenized.labels,
        kinds=tokenized.kinds,
        media=media,
        context=min(tokenized.context, len(tokenized.ids)),
        answer=tokenized.answer_ids,
    )


def _kinds(sample: Sample) -> list[str]:
    return [medium.kind for medium in sample.media]


def _instructions(turns: Sequence[Turn]) -> list[str]:
    """Return, per medium in reading order, the text of its turn."""
    return [
        words_of(turn.text).lstrip()
        for turn in turns
        for _ in PLACEHOLDER_PATTERN.findall(turn.text)
    ]


def _sentence(sample: Sample) -> str:
    text = assistant_text(sample.turns)
    if not text:
        raise SampleError(f"sample {sample.id}: has no text from the assistant")
    return text
