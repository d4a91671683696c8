"""Dialogues to token ids, labels and the positions of media.

A dialogue is rendered whole and tokenized once, around its media. Only the number of tokens of each
medium is needed for that, so planning never decodes media.
"""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from etl.storage.schema import PLACEHOLDERS, SampleError, Turn, split_media
from model.batch import IGNORED
from model.output_branch import signal_ids
from model.spec import ChatTemplate, InputBranchSpec, ModelSpec, SpecError
from model.spec.output_branches import OutputBranchSpec
from pipeline.config.run_config import RunConfig
from pipeline.data.chat_template import (
    PLAIN,
    ChatRenderer,
    Rendered,
    RenderError,
    any_of,
    plain_turns,
)
from pipeline.data.text_encoding import TextEncoder

log = logging.getLogger(__name__)

_VERSION = 4
"""Increase it whenever the same text gives other tokens, so that no stale lengths are used."""


class TokenizedSample:
    """The token ids and labels of a sample, appended one token or medium at a time.

    Attributes:
        ids, labels: token ids, and the same where they are targets, else `IGNORED`.
        kinds: per token the kind of medium that its position belongs to (`to_image` for one to be
            generated), or "" for text.
        media_starts: per medium, in the order of the sample, the token at which it starts,
            including the text before it, and its first position.
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


@dataclass(frozen=True, kw_only=True)
class _Item:
    """What a sentinel stands for: a special token, or a medium whose text starts at `lead`."""

    token: int | None = None
    kind: str = ""
    lead: int = 0


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """A text with sentinels, what they stand for, and start and end of its answers."""

    text: str
    items: tuple[_Item, ...]
    answers: tuple[tuple[int, int], ...]


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
        seq2seq: whether the backbone has a decoder, which answers only the last turn.
        stop_ids: the tokens of which any ends an answer.
        stop_text: the text that ends an answer, where several tokens do.
        max_positions: how many tokens the backbone takes; None where its positions are relative.

    Raises:
        SpecError: a chat template or a tokenizer that cannot be used.
    """

    columns: tuple[str, ...] = ("id", "turns", "media.kind")
    """Of the shards, the arguments of `length`."""

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
        self._prompt = prompt
        self._max_tokens = max_tokens
        self.max_positions = _max_positions(spec)
        template = spec.backbone.template
        self._media_first = template is not None and template.media_first
        self._renderer = (
            chat_renderer(spec, tokenizer) if prompt == "chat" else self._plain_renderer(tokenizer)
        )
        self._encoder = TextEncoder(tokenizer)
        self._sentinels = {
            name: self._encoder.sentinel(name)
            for name in (*self._renderer.special, *self._renderer.placeholders.values())
        }
        self._names = any_of([*self._sentinels])
        self._kinds = {name: kind for kind, name in self._renderer.placeholders.items()}
        self._token_ids: dict[str, int] = {
            name: tokenizer.convert_tokens_to_ids(name) for name in self._renderer.special
        }
        self._eos_id: int | None = tokenizer.eos_token_id
        # For a prompt without any token, which no model takes.
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
        self._any_id: int = next(number for number in ids if number is not None)
        self.seq2seq = spec.backbone.seq2seq
        self._last_only = self.seq2seq or spec.backbone.prefix_lm
        self.stop_ids, self.stop_text = self._stops()
        self._lacks_end = not self.stop_text and self.stop_ids == ()
        if self._eos_id is not None and self._eos_id not in self.stop_ids:
            self.stop_ids += (self._eos_id,)

    def _plain_renderer(self, tokenizer: PreTrainedTokenizerBase) -> ChatRenderer:
        plain = replace(PLAIN, media_first=self._media_first)
        return ChatRenderer(plain, tokenizer, kinds=[*PLACEHOLDERS], source="captions")

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
            "template": [self._renderer.jinja, self._renderer.placeholders, self._media_first],
            "inputs": inputs,
            "signals": self._signal_ids,
            "special": self._token_ids,
            "around": [self._encoder.prefix, self._encoder.suffix],
            "end": [self.stop_ids, self.stop_text],
            "tokenizer": self._encoder.state,
        }
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def tokenize(
        self, sample_id: str, turns: Sequence[Turn], kinds: Sequence[str]
    ) -> TokenizedSample:
        """Tokenize a dialogue for training, truncated: the assistant's answers are the targets.

        Args:
            sample_id: for error messages.
            turns: of the dialogue.
            kinds: of its media, in reading order.

        Raises:
            SampleError: media that the model does not take or that have no placeholder, a dialogue
                that the template refuses, or a sample whose media or targets do not fit.
        """
        tokenized = self._checked(sample_id, turns, kinds, self._tokenize)
        tokenized.truncate(self._max_tokens, sample_id)
        return tokenized

    def tokenize_prompt(
        self,
        sample_id: str,
        turns: Sequence[Turn],
        kinds: Sequence[str],
        *,
        max_new_tokens: int = 0,
        asks_for_media: bool = False,
    ) -> TokenizedSample:
        """Tokenize a dialogue that the model is to continue with an answer.

        Args:
            sample_id: for error messages.
            turns: those before the answer.
            kinds: of their media, in reading order.
            max_new_tokens: the longest answer.
            asks_for_media: whether the answer is to hold media of the output branches.

        Raises:
            SampleError: as `tokenize`, or prompt and answer are longer than the backbone takes.
        """
        tokenized = self._checked(
            sample_id, turns, kinds, self._tokenize_prompt, asks_for_media=asks_for_media
        )
        longest = len(tokenized.ids) + max_new_tokens
        if not self.seq2seq and self.max_positions is not None and longest > self.max_positions:
            left = self.max_positions - len(tokenized.ids)
            want = f"an answer of at most {left}" if left > 0 else "a shorter prompt"
            raise SampleError(
                f"sample {sample_id}: prompt and answer have up to {longest} tokens, but the "
                f"backbone has {self.max_positions} positions; want {want}"
            )
        return tokenized

    def length(self, sample_id: str, turns: Sequence[Turn], kinds: Sequence[str]) -> SampleLength:
        """Return the length of a sample, or why it cannot be used."""
        try:
            tokenized = self.tokenize(sample_id, turns, kinds)
        except SampleError as error:
            return SampleLength(tokens=0, targets=0, skip_reason=str(error))
        answer = len(tokenized.answer_ids) if tokenized.answer_ids is not None else 0
        return SampleLength(
            tokens=len(tokenized.ids) + answer,
            targets=tokenized.num_targets,
            branch_kinds=tuple(tokenized.branch_kinds),
        )

    def _checked(
        self,
        sample_id: str,
        turns: Sequence[Turn],
        kinds: Sequence[str],
        tokenize: Callable[[Sequence[Turn]], TokenizedSample],
        *,
        asks_for_media: bool = False,
    ) -> TokenizedSample:
        """Tokenize a dialogue whose media the model takes."""
        for kind in kinds:
            if kind not in self._inputs and kind not in self._outputs:
                raise SampleError(
                    f"sample {sample_id}: holds {kind}, the model takes {', '.join(self._inputs)}"
                )
        used = len(media_of(turns))
        if used != len(kinds):
            raise SampleError(f"sample {sample_id}: {len(kinds)} media, {used} placeholders")
        if self._prompt != "chat":
            generated = [PLACEHOLDERS[modality] for modality in self._outputs]
            turns = plain_turns(turns, generated, asks_for_media=asks_for_media)
        try:
            return tokenize(turns)
        except RenderError as error:
            raise SampleError(f"sample {sample_id}: {error}") from error

    def _tokenize(self, turns: Sequence[Turn]) -> TokenizedSample:
        """Tokenize a whole dialogue without truncation."""
        rendered = self._renderer.render(turns)
        if self.seq2seq and rendered.answers:
            return self._tokenize_for_decoder(turns, rendered)
        tokenized = TokenizedSample()
        ends = rendered.answers and not rendered.text[rendered.answers[-1][1] :].strip()
        self._append_dialogue(tokenized, turns, rendered)
        if ends and self._lacks_end and self._eos_id is not None:
            tokenized.append([self._eos_id], is_target=True)
        return tokenized

    def _tokenize_for_decoder(self, turns: Sequence[Turn], rendered: Rendered) -> TokenizedSample:
        """Tokenize for a seq2seq backbone: its encoder reads all before the last answer."""
        last = max(number for number, turn in enumerate(turns) if turn.role == "assistant")
        tokenized = self._tokenize_prompt(turns[:last], media=media_of(turns))
        start, end = rendered.answers[-1]
        start += rendered.text[start:end].startswith(" ")
        answer = Rendered(
            text=rendered.text[start:end],
            literal=frozenset(place - start for place in rendered.literal),
        )
        decoded = TokenizedSample()
        self._append(decoded, self._lay_out(answer))
        eos = [self._eos_id] if self._lacks_end and self._eos_id is not None else []
        tokenized.answer_ids = decoded.ids + eos
        return tokenized

    def _tokenize_prompt(
        self, turns: Sequence[Turn], media: Sequence[str] | None = None
    ) -> TokenizedSample:
        """Tokenize all before an answer; `media` are those of the whole dialogue."""
        # The media of earlier answers are signal tokens here, too, as in training.
        earlier = media_of([turn for turn in turns if turn.role == "assistant"])
        generated = any(modality in self._outputs for modality in earlier)
        rendered = self._renderer.render_prompt(turns, with_answers=generated)
        tokenized = TokenizedSample()
        self._append_dialogue(tokenized, turns, rendered, media)
        tokenized.labels = [IGNORED] * len(tokenized.ids)
        if self.seq2seq:
            tokenized.append(self._encoder.suffix, is_target=False)
        if not tokenized.ids:
            tokenized.append([self._any_id], is_target=False)
        tokenized.context = len(tokenized.ids)
        return tokenized

    def _append_dialogue(
        self,
        tokenized: TokenizedSample,
        turns: Sequence[Turn],
        rendered: Rendered,
        media: Sequence[str] | None = None,
    ) -> None:
        """Append a rendered dialogue with its media, and what the tokenizer puts before a text."""
        media = media_of(turns) if media is None else media
        places: list[tuple[str, int, int]] = []
        layout = self._lay_out(rendered)
        if self._media_first:
            names = (self._renderer.placeholders[kind] for kind in media)
            first = Rendered(text="".join(names), literal=frozenset())
            places += self._append(tokenized, self._lay_out(first))
        # A template may write the beginning of the sequence itself.
        start = self._encoder.prefix
        written = layout.items and layout.text[:1] in self._sentinels.values()
        if not (start and written and layout.items[0].token == start[0]):
            tokenized.append(start, is_target=False)
        places += self._append(tokenized, layout)
        # In the order of the sample: a template may write all pictures before all videos.
        for kind in media:
            found = next((place for place in places if place[0].removeprefix("to_") == kind), None)
            if found is None:
                raise RenderError(f"the chat template has no place for its {kind}")
            places.remove(found)
            tokenized.branch_kinds.append(found[0])
            tokenized.media_starts.append(found[1:])
        if places:
            raise RenderError(f"the chat template writes a {places[0][0]} that it has not")

    def _append(self, tokenized: TokenizedSample, layout: _Layout) -> list[tuple[str, int, int]]:
        """Append a text's tokens and media; the last answer, or all of them, are targets.

        Returns:
            Per medium its kind, the token at which it starts, and its first position.
        """
        answers = layout.answers[-1:] if self._last_only else layout.answers
        items, places = iter(layout.items), []
        offset, ends = len(tokenized.ids), list[int]()
        context = None
        for number, start, end in self._encoder.encode(layout.text):
            # A token is a target if any of its characters is; some have none.
            is_target = any(s < max(end, start + 1) and start < e for s, e in answers)
            if is_target and context is None and max(end, start + 1) > answers[-1][0]:
                context = len(tokenized.ids)
            item = _Item(token=number) if number is not None else next(items)
            if item.token is not None:
                tokenized.append([item.token], is_target=is_target)
            else:
                lead = offset + bisect_right(ends, item.lead)
                places.append((item.kind, lead, len(tokenized.ids)))
                self._append_medium(tokenized, item.kind, is_target=is_target)
            ends += [end] * (len(tokenized.ids) - offset - len(ends))
        tokenized.context = len(tokenized.ids) if context is None else context
        return places

    def _append_medium(self, tokenized: TokenizedSample, kind: str, *, is_target: bool) -> None:
        modality = kind.removeprefix("to_")
        if modality != kind:
            tokenized.append_signal_tokens(
                self._signal_ids[modality], is_target=is_target, kind=kind
            )
            return
        positions = [0] * self._spec.context_tokens(self._inputs[kind])
        tokenized.append(positions, is_target=False, kind=kind)

    def _lay_out(self, rendered: Rendered) -> _Layout:
        """Put a sentinel in place of each special token of the template and of each medium."""
        texts: list[str] = []
        items: list[_Item] = []
        old, new = [0], [0]  # corresponding positions in the two texts
        seen: Counter[str] = Counter()
        for found in self._names.finditer(rendered.text):
            if found.start() in rendered.literal:
                continue
            texts.append(rendered.text[old[-1] : found.start()])
            start = new[-1] + len(texts[-1])
            if found[0] in self._kinds:
                answered = any(s <= found.start() < e for s, e in rendered.answers)
                kind = self._medium_kind(self._kinds[found[0]], in_answer=answered)
                seen[kind] += 1
                before, after = self._around(kind, seen[kind])
                name = [(found[0], True)]
                pieces = [*self._template_text(before), *name, *self._template_text(after)]
            else:
                kind, pieces = "", [(found[0], True)]
            for piece, is_name in pieces:
                texts.append(self._sentinels[piece] if is_name else piece)
                if is_name and piece in self._kinds:
                    items.append(_Item(kind=kind, lead=start))
                elif is_name:
                    items.append(_Item(token=self._token_ids[piece]))
            old.append(found.end())
            new.append(start + sum(map(len, texts[-len(pieces) :])))
        texts.append(rendered.text[old[-1] :])

        def place(position: int) -> int:
            index = bisect_right(old, position) - 1
            return new[index] + position - old[index]

        answers = tuple((place(start), place(end)) for start, end in rendered.answers)
        return _Layout(text="".join(texts), items=tuple(items), answers=answers)

    def _medium_kind(self, modality: str, *, in_answer: bool) -> str:
        """Return the kind of a medium: `to_…` if the assistant generates it."""
        if in_answer and modality in self._outputs:
            return self._outputs[modality].kind
        if modality not in self._inputs:
            raise RenderError(f"its {modality} is an input, which the model only outputs")
        return modality

    def _around(self, kind: str, number: int) -> tuple[str, str]:
        """Return the texts before and after the n-th medium of a kind."""
        branch = self._inputs.get(kind)
        if branch is None:
            return "", ""
        count = str(number)
        return branch.before.replace("{number}", count), branch.after.replace("{number}", count)

    def _template_text(self, text: str) -> list[tuple[str, bool]]:
        """Split a text of the spec at the names of special tokens; says which pieces are names."""
        pieces, end = list[tuple[str, bool]](), 0
        for found in self._names.finditer(text):
            if found[0] not in self._kinds:
                pieces += [(text[end : found.start()], False), (found[0], True)]
                end = found.end()
        return [piece for piece in (*pieces, (text[end:], False)) if piece[0]]

    def _stops(self) -> tuple[tuple[int, ...], str | None]:
        """Return the token, or else the text, that ends an answer in the template."""
        answer = "mmloom"
        turns = [Turn(role="user", text="?"), Turn(role="assistant", text=answer)]
        rendered = self._renderer.render(turns)
        start, end = rendered.answers[-1]
        tail = rendered.text[start:end].partition(answer)[2]
        special = [found[0] for found in self._names.finditer(tail)]
        if special:
            return (self._token_ids[special[0]],), None
        if not tail.strip(" "):
            return (), None
        ids = [number for number, *_ in self._encoder.encode(tail) if number is not None]
        return ((ids[0],), None) if len(ids) == 1 else ((), tail)


def chat_renderer(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> ChatRenderer:
    """Return the renderer of a model's dialogues.

    Raises:
        SpecError: neither the spec nor the checkpoint has a chat template, or it cannot be used.
    """
    kinds = {*spec.modalities, *(branch.modality for branch in spec.outputs)}
    template: ChatTemplate | str | None = spec.backbone.template
    source = spec.backbone.weights
    if template is None:
        if not tokenizer.chat_template:
            raise SpecError(
                f"model.backbone.template: none, and {source!r} has no chat template; set one, or "
                "put chat_template.jinja there"
            )
        template = str(tokenizer.get_chat_template())
    ordered = [kind for kind in PLACEHOLDERS if kind in kinds]
    return ChatRenderer(template, tokenizer, kinds=ordered, source=source)


def media_of(turns: Sequence[Turn]) -> list[str]:
    """Return the kinds of media of a dialogue, in reading order."""
    return [kind for turn in turns for kind, _ in split_media(turn.text) if kind]


def other_template(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a line about a configured chat template that differs from the checkpoint's own.

    None where they write the same dialogue, or where one of the two is missing.
    """
    template, source = spec.backbone.template, spec.backbone.weights
    if template is None or not tokenizer.chat_template:
        return None
    turns = [
        Turn(role=("user", "assistant")[number % 2], text=text)
        for number, text in enumerate(("Where?", "There.", "Sure?", "Yes."))
    ]
    own = ChatRenderer(str(tokenizer.get_chat_template()), tokenizer, kinds=(), source=source)
    theirs, ours = (
        renderer.render(turns).text.removeprefix(tokenizer.bos_token or "")
        for renderer in (own, ChatRenderer(template, tokenizer, kinds=(), source=source))
    )
    if theirs.rstrip() == ours.rstrip():
        return None
    here = next((n for n, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), 0)
    return (
        f"model.backbone.template is not the chat template of {source}: there "
        f"{theirs[here : here + 40]!r}, here {ours[here : here + 40]!r}; null stands for theirs"
    )


def warn_of_other_template(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Log a warning where a run's chat template is not that of its published weights."""
    if run.settings.prompt == "chat" and run.weights == "pretrained":
        line = other_template(run.system.model, tokenizer)
        if line is not None:
            log.warning(line)


def check_max_tokens(spec: ModelSpec, max_tokens: int) -> None:
    """Raise SpecError where samples of that length are longer than the backbone takes."""
    positions = _max_positions(spec)
    if positions is not None and max_tokens > positions:
        raise SpecError(f"max_tokens: {max_tokens}, but the backbone has {positions} positions")


def _max_positions(spec: ModelSpec) -> int | None:
    """Return how many tokens the backbone takes; None where its positions are relative."""
    return None if spec.backbone.relative_positions else spec.backbone.max_positions
