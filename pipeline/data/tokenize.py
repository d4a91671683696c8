"""Dialogues laid out as tokens and places of media.

That needs no medium, only how many tokens each becomes: planning never decodes one.
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
from pipeline.data.chat_template import Piece, Segment, chat, plain, without_special

_KINDS = {placeholder: kind for kind, placeholder in PLACEHOLDERS.items()}
_VERSION = 1
"""Raise it when the same text is laid out in other tokens, so that no old lengths are used."""


class TokenizedSample:
    """A row while it is laid out.

    Attributes:
        ids, labels: token ids, and the same where they are targets, else `IGNORED`.
        kinds: per token the kind of medium whose place it is (of one that comes out: `to_image`),
            or "" for text.
        starts: per medium the token before which it begins, what stands before it included, and
            the first of its places.
        ways: per medium its kind, likewise.
        context: tokens before the last answer.
        answer: what a seq2seq backbone's decoder is to say; None for a causal one.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.kinds: list[str] = []
        self.starts: list[tuple[int, int]] = []
        self.ways: list[str] = []
        self.context = 0
        self.answer: list[int] | None = None

    def add(self, ids: list[int], *, learnt: bool, kind: str = "") -> None:
        """Append tokens, or places of a medium of `kind`."""
        self.ids += ids
        self.labels += ids if learnt else [IGNORED] * len(ids)
        self.kinds += [kind] * len(ids)

    def say(self, signals: list[int], *, learnt: bool, kind: str) -> None:
        """Append the signals of a medium that comes out; their ids are those of targets only."""
        self.starts.append((len(self.ids), len(self.ids)))
        self.ways.append(kind)
        self.ids += [0] * len(signals)
        self.labels += signals if learnt else [IGNORED] * len(signals)
        self.kinds += [kind] * len(signals)

    def cut(self, most: int, sample: str) -> None:
        """Cut what is longer than `most` tokens.

        Raises:
            SampleError: a medium would be cut, or no target is left.
        """
        if any(self.kinds[most:]) or any(first > most for _, first in self.starts):
            raise SampleError(f"sample {sample}: its media do not fit in {most} tokens")
        self.ids, self.labels, self.kinds = self.ids[:most], self.labels[:most], self.kinds[:most]
        if self.answer is not None:
            self.answer = self.answer[:most]
        if not self.targets:
            raise SampleError(f"sample {sample}: nothing to learn in its first {most} tokens")

    @property
    def targets(self) -> int:
        """Tokens that are learnt; the first of a row has nothing before it to be told from."""
        if self.answer is not None:
            return len(self.answer)
        later = self.labels[1:]
        return len(later) - later.count(IGNORED)


@dataclass(frozen=True, kw_only=True)
class Length:
    """What a sample takes, told without its media.

    Args:
        tokens: of the backbone; with a decoder, of encoder and decoder together.
        targets: tokens that are learnt.
        media: the kinds of its media, one a medium, as of `TokenizedSample.ways`.
        fault: why it cannot be used, or None.
    """

    tokens: int
    targets: int
    media: tuple[str, ...] = ()
    fault: str | None = None


class SampleTokenizer:
    """Lays out dialogues for one model and one kind of prompt.

    Args:
        spec: the model; says how many tokens each medium becomes.
        tokenizer: the backbone's, a fast one.
        prompt: `plain`, `chat` or `sentences`, see `model.spec.Stage`.
        max_tokens: longer rows are cut at the end; a medium that would be cut is an error.
        outputs: the ways out that are used: where the assistant speaks, a medium of theirs is not
            shown but drawn, and signals stand for it.

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
        outputs: Sequence[OutputBranchSpec] = (),
    ) -> None:
        self._spec = spec
        self._outputs: dict[str, OutputBranchSpec] = {slot.modality: slot for slot in outputs}
        self._signals = signal_ids(outputs, spec.backbone.vocabulary)
        self._slots: dict[str, InputBranchSpec] = {slot.modality: slot for slot in spec.inputs}
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._special = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})
        self.seq2seq = spec.backbone.seq2seq
        self._last_only = self.seq2seq or spec.backbone.prefix_lm
        self.end = self._end_ids(spec.backbone.template.end, prompt)

    @property
    def key(self) -> str:
        """What decides a row's tokens, as sha256: tokenizer, prompt, template, places."""
        slots = [
            [slot.modality, self._spec.context_tokens(slot), slot.before, slot.after]
            for slot in self._spec.inputs
        ]
        words = {
            "version": _VERSION,
            "prompt": self._prompt,
            "max_tokens": self._max_tokens,
            "last_only": self._last_only,
            "seq2seq": self.seq2seq,
            "template": asdict(self._spec.backbone.template),
            "slots": slots,
            "signals": self._signals,
            "special": self._special,
            "start": self._tokenizer.bos_token_id,
            "end": self.end,
            "tokenizer": self._tokenizer.backend_tokenizer.to_str(),
        }
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()

    def draft(
        self, name: str, turns: Sequence[Turn], kinds: Sequence[str], *, cut: bool
    ) -> TokenizedSample:
        """Lay out a dialogue.

        Args:
            name: the sample's id.
            turns: what is said.
            kinds: of its media, in reading order.
            cut: whether rows are cut to `max_tokens`.

        Raises:
            SampleError: media that the model does not take or that no placeholder stands for, or
                a sample whose media or targets do not fit.
        """
        for kind in kinds:
            if kind not in self._slots and kind not in self._outputs:
                raise SampleError(
                    f"sample {name}: holds {kind}, the model takes {', '.join(self._slots)}"
                )
        draft = self._lay_out(name, turns)
        if len(draft.starts) != len(kinds):
            raise SampleError(f"sample {name}: {len(kinds)} media, {len(draft.starts)} used")
        if cut:
            draft.cut(self._max_tokens, name)
        return draft

    def length(self, name: str, turns: Sequence[Turn], kinds: Sequence[str]) -> Length:
        """Return what a sample takes, or why it cannot be used."""
        try:
            draft = self.draft(name, turns, kinds, cut=True)
        except SampleError as error:
            return Length(tokens=0, targets=0, fault=str(error))
        answer = len(draft.answer) if draft.answer is not None else 0
        return Length(
            tokens=len(draft.ids) + answer, targets=draft.targets, media=tuple(draft.ways)
        )

    def _lay_out(self, name: str, turns: Sequence[Turn]) -> TokenizedSample:
        """Lay out tokens and places; some backbones answer only the last turn."""
        draft = TokenizedSample()
        if (start := self._tokenizer.bos_token_id) is not None:
            draft.add([start], learnt=False)
        template = self._spec.backbone.template
        drawn = [PLACEHOLDERS[modality] for modality in self._outputs]
        pieces = chat(turns, template) if self._prompt == "chat" else plain(turns, drawn)
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
            self._lay(draft, piece, name)
            draft.add(ids, learnt=piece.learnt)
        if self.seq2seq:
            draft.add([self._tokenizer.eos_token_id], learnt=False)  # as T5 ends every input
        return draft

    def _lay(self, draft: TokenizedSample, piece: Piece, name: str = "") -> None:
        """Add a piece's tokens and places; `name` is the sample's."""
        for segment in without_special(piece, self._special):
            if segment.own:
                own = self._tokenizer.convert_tokens_to_ids(segment.text)
                draft.add([own], learnt=piece.learnt)
                continue
            for kind, part in _split(segment.text):
                if not kind:
                    draft.add(self._ids(part), learnt=piece.learnt)
                elif piece.answers and kind in self._outputs:
                    way = self._outputs[kind].kind
                    draft.say(self._signals[kind], learnt=piece.learnt, kind=way)
                elif kind in self._slots:
                    self._place(draft, self._slots[kind])
                else:
                    raise SampleError(f"sample {name}: shows {kind}, which the model only draws")

    def _piece_ids(self, piece: Piece) -> list[int]:
        """Return the tokens of an answer, which holds no media."""
        draft = TokenizedSample()
        self._lay(draft, piece)
        return draft.ids

    def _end_ids(self, end: str | None, prompt: str) -> list[int]:
        """Return what ends an answer: the template's own words, or the end-of-sequence token."""
        if end is None or prompt != "chat":
            return [self._tokenizer.eos_token_id]
        return self._piece_ids(
            Piece(segments=(Segment(text=end, own=True),), answers=True, learnt=True)
        )

    def _place(self, draft: TokenizedSample, slot: InputBranchSpec) -> None:
        start = len(draft.ids)
        draft.add(self._ids(slot.before), learnt=False)
        draft.starts.append((start, len(draft.ids)))
        draft.ways.append(slot.modality)
        draft.add([0] * self._spec.context_tokens(slot), learnt=False, kind=slot.modality)
        draft.add(self._ids(slot.after), learnt=False)

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


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
