"""Dialogues to token ids, labels and the positions of media.

Only the number of tokens of each medium is needed for that, so planning never decodes media.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from transformers import PreTrainedTokenizerBase

from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS, SampleError, Turn
from model.batch import IGNORED
from model.output_branch import signal_ids
from model.spec import InputBranchSpec, ModelSpec
from model.spec.output_branches import OutputBranchSpec
from pipeline.data.chat_template import (
    Segment,
    Span,
    apply_chat_template,
    apply_plain_template,
    split_special_tokens,
)

_KINDS = {placeholder: kind for kind, placeholder in PLACEHOLDERS.items()}
_VERSION = 2
"""Increase it whenever the same text gives other tokens, so that no stale lengths are used."""


class TokenizedSample:
    """The token ids and labels of a sample, appended one span at a time.

    Attributes:
        ids, labels: token ids, and the same where they are targets, else `IGNORED`.
        kinds: per token the kind of medium that its position belongs to (`to_image` for one to be
            generated), or "" for text.
        media_starts: per medium the token at which it starts, including the text before it, and
            its first position.
        branch_kinds: per medium its kind, as in `kinds`.
        context: tokens before the last answer.
        answer_ids: the decoder's target of a seq2seq backbone; None for a causal one.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.kinds: list[str] = []
        self.media_starts: list[tuple[int, int]] = []
        self.branch_kinds: list[str] = []
        self.context = 0
        self.answer_ids: list[int] | None = None

    def append(self, ids: list[int], *, is_target: bool, kind: str = "") -> None:
        """Append tokens of a text, or positions of a medium of `kind`."""
        self.ids += ids
        self.labels += ids if is_target else [IGNORED] * len(ids)
        self.kinds += [kind] * len(ids)

    def append_signal_tokens(self, signal_ids: list[int], *, is_target: bool, kind: str) -> None:
        """Append a medium to be generated; its signal ids only appear in the labels."""
        self.media_starts.append((len(self.ids), len(self.ids)))
        self.branch_kinds.append(kind)
        self.ids += [0] * len(signal_ids)
        self.labels += signal_ids if is_target else [IGNORED] * len(signal_ids)
        self.kinds += [kind] * len(signal_ids)

    def truncate(self, max_tokens: int, sample_id: str) -> None:
        """Truncate to `max_tokens`.

        Raises:
            SampleError: a medium would be cut, or no target is left.
        """
        if any(self.kinds[max_tokens:]) or any(f > max_tokens for _, f in self.media_starts):
            raise SampleError(f"sample {sample_id}: its media do not fit in {max_tokens} tokens")
        self.ids, self.labels = self.ids[:max_tokens], self.labels[:max_tokens]
        self.kinds = self.kinds[:max_tokens]
        if self.answer_ids is not None:
            self.answer_ids = self.answer_ids[:max_tokens]
        if not self.num_targets:
            raise SampleError(f"sample {sample_id}: no target in its first {max_tokens} tokens")

    @property
    def num_targets(self) -> int:
        """The number of targets; the first token of a causal sequence cannot be one."""
        if self.answer_ids is not None:
            return len(self.answer_ids)
        later = self.labels[1:]
        return len(later) - later.count(IGNORED)


@dataclass(frozen=True, kw_only=True)
class SampleLength:
    """The length of a sample, computed without decoding its media.

    Args:
        tokens: of the backbone; with a decoder, of encoder and decoder together.
        targets: tokens that are targets.
        branch_kinds: the kind of each medium, see `TokenizedSample`.
        skip_reason: why the sample cannot be used, or None.
    """

    tokens: int
    targets: int
    branch_kinds: tuple[str, ...] = ()
    skip_reason: str | None = None


class SampleTokenizer:
    """Tokenizes dialogues for one model and one kind of prompt.

    Args:
        spec: the model; it determines how many tokens each medium becomes.
        tokenizer: the backbone's, a fast one.
        prompt: `plain`, `chat` or `sentences`, see `model.spec.Stage`.
        max_tokens: longer samples are truncated; a medium that would be cut is an error.
        outputs: the output branches in use: in the assistant's turns, a medium of theirs is
            generated instead of encoded, and signal tokens stand for it.

    Attributes:
        end_ids: the tokens that end an answer.
        seq2seq: whether the backbone has a decoder, which answers only the last turn.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: str,
        max_tokens: int,
        outputs: Sequence[OutputBranchSpec] = (),
    ) -> None:
        self._spec = spec
        self._outputs: dict[str, OutputBranchSpec] = {b.modality: b for b in outputs}
        self._signal_ids = signal_ids(outputs, spec.backbone.vocabulary)
        self._inputs: dict[str, InputBranchSpec] = {b.modality: b for b in spec.inputs}
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._special = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})
        self.seq2seq = spec.backbone.seq2seq
        self._last_only = self.seq2seq or spec.backbone.prefix_lm
        self.end_ids = self._end_ids(spec.backbone.template.end, prompt)

    @property
    def key(self) -> str:
        """The sha256 of all that determines the tokens: tokenizer, prompt, template, media."""
        inputs = [
            [branch.modality, self._spec.context_tokens(branch), branch.before, branch.after]
            for branch in self._spec.inputs
        ]
        value = {
            "version": _VERSION,
            "prompt": self._prompt,
            "max_tokens": self._max_tokens,
            "last_only": self._last_only,
            "seq2seq": self.seq2seq,
            "template": asdict(self._spec.backbone.template),
            "inputs": inputs,
            "signals": self._signal_ids,
            "special": self._special,
            "start": self._tokenizer.bos_token_id,
            "end": self.end_ids,
            "tokenizer": self._tokenizer.backend_tokenizer.to_str(),
        }
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def tokenize(
        self, sample_id: str, turns: Sequence[Turn], kinds: Sequence[str], *, truncate: bool
    ) -> TokenizedSample:
        """Tokenize a dialogue.

        Args:
            sample_id: for error messages.
            turns: of the dialogue.
            kinds: of its media, in reading order.
            truncate: whether to truncate to `max_tokens`.

        Raises:
            SampleError: media that the model does not take or that have no placeholder, or
                a sample whose media or targets do not fit.
        """
        for kind in kinds:
            if kind not in self._inputs and kind not in self._outputs:
                raise SampleError(
                    f"sample {sample_id}: holds {kind}, the model takes {', '.join(self._inputs)}"
                )
        tokenized = self._tokenize(sample_id, turns)
        used = len(tokenized.media_starts)
        if used != len(kinds):
            raise SampleError(f"sample {sample_id}: {len(kinds)} media, {used} placeholders")
        if truncate:
            tokenized.truncate(self._max_tokens, sample_id)
        return tokenized

    def length(self, sample_id: str, turns: Sequence[Turn], kinds: Sequence[str]) -> SampleLength:
        """Return the length of a sample, or why it cannot be used."""
        try:
            tokenized = self.tokenize(sample_id, turns, kinds, truncate=True)
        except SampleError as error:
            return SampleLength(tokens=0, targets=0, skip_reason=str(error))
        answer = len(tokenized.answer_ids) if tokenized.answer_ids is not None else 0
        return SampleLength(
            tokens=len(tokenized.ids) + answer,
            targets=tokenized.num_targets,
            branch_kinds=tuple(tokenized.branch_kinds),
        )

    def _tokenize(self, sample_id: str, turns: Sequence[Turn]) -> TokenizedSample:
        """Tokenize without truncation; some backbones answer only the last turn."""
        tokenized = TokenizedSample()
        if (start := self._tokenizer.bos_token_id) is not None:
            tokenized.append([start], is_target=False)
        generated = [PLACEHOLDERS[modality] for modality in self._outputs]
        spans = (
            apply_chat_template(turns, self._spec.backbone.template)
            if self._prompt == "chat"
            else apply_plain_template(turns, generated)
        )
        last = max((i for i, span in enumerate(spans) if span.is_target), default=None)
        if self._last_only:
            spans = [replace(s, is_target=s.is_target and i == last) for i, s in enumerate(spans)]
        for number, span in enumerate(spans):
            end_ids = self.end_ids if span.is_answer and span.segments else []
            if number == last:
                tokenized.context = len(tokenized.ids)
            if self.seq2seq and number == last:
                tokenized.answer_ids = [*self._answer_ids(span), *end_ids]
                continue
            self._append(tokenized, span, sample_id)
            tokenized.append(end_ids, is_target=span.is_target)
        if self.seq2seq:
            tokenized.append([self._tokenizer.eos_token_id], is_target=False)  # as in T5
        return tokenized

    def _append(self, tokenized: TokenizedSample, span: Span, sample_id: str = "") -> None:
        """Append the tokens and media of a span."""
        for segment in split_special_tokens(span, self._special):
            if segment.from_template:
                special_id = self._tokenizer.convert_tokens_to_ids(segment.text)
                tokenized.append([special_id], is_target=span.is_target)
                continue
            for kind, text in _split_placeholders(segment.text):
                if not kind:
                    tokenized.append(self._ids(text), is_target=span.is_target)
                elif span.is_answer and kind in self._outputs:
                    tokenized.append_signal_tokens(
                        self._signal_ids[kind],
                        is_target=span.is_target,
                        kind=self._outputs[kind].kind,
                    )
                elif kind in self._inputs:
                    self._append_medium(tokenized, self._inputs[kind])
                else:
                    raise SampleError(
                        f"sample {sample_id}: its {kind} is an input, which the model only outputs"
                    )

    def _answer_ids(self, span: Span) -> list[int]:
        """Return the tokens of an answer, which holds no media."""
        tokenized = TokenizedSample()
        self._append(tokenized, span)
        return tokenized.ids

    def _end_ids(self, end: str | None, prompt: str) -> list[int]:
        """Return what ends an answer: the template's text, or the end-of-sequence token."""
        if end is None or prompt != "chat":
            return [self._tokenizer.eos_token_id]
        segment = Segment(text=end, from_template=True)
        return self._answer_ids(Span(segments=(segment,), is_answer=True, is_target=True))

    def _append_medium(self, tokenized: TokenizedSample, branch: InputBranchSpec) -> None:
        start = len(tokenized.ids)
        tokenized.append(self._ids(branch.before), is_target=False)
        tokenized.media_starts.append((start, len(tokenized.ids)))
        tokenized.branch_kinds.append(branch.modality)
        positions = [0] * self._spec.context_tokens(branch)
        tokenized.append(positions, is_target=False, kind=branch.modality)
        tokenized.append(self._ids(branch.after), is_target=False)

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _split_placeholders(text: str) -> list[tuple[str, str]]:
    """Split a text at its placeholders: (kind, "") for a medium, ("", text) for text."""
    split: list[tuple[str, str]] = []
    end = 0
    for found in PLACEHOLDER_PATTERN.finditer(text):
        if found.start() > end:
            split.append(("", text[end : found.start()]))
        split.append((_KINDS[found.group()], ""))
        end = found.end()
    if end < len(text):
        split.append(("", text[end:]))
    return split
