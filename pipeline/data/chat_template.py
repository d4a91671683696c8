"""Rendering of dialogues: a chat template turns all turns into one text, with the answers marked.

transformers renders every template: a preset's (`ChatTemplate.jinja`) and a checkpoint's own.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS, Turn, split_media, words_of
from model.spec import ChatTemplate, SpecError

_ESCAPE, _END = "\ufdd0", "\ufdd1"
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")  # Unicode reserves them for programs (§23.7)

_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "mmloom"
_PARTS_AS_PYTHON = "{'type': "

PLAIN = ChatTemplate(user="{text}", assistant="{text}", end_empty=False)
"""No template (MM-PT): placeholders and the assistant's texts, each with an end of sequence."""


class RenderError(ValueError):
    """Why a template does not render a dialogue, or where its answers cannot be found."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A dialogue as one text.

    Args:
        text: with the template's special tokens and the placeholders of media by name.
        literal: where such a name starts that is plain text of a turn.
        answers: start and end of what the assistant says, including the end of an answer.
    """

    text: str
    literal: frozenset[int]
    answers: tuple[tuple[int, int], ...] = ()


class ChatRenderer:
    """Renders dialogues with one chat template.

    Args:
        template: of a preset, or the Jinja text of a checkpoint.
        tokenizer: the template may use its special tokens.
        kinds: of media that dialogues may hold.
        source: of the template, for error messages.

    Attributes:
        jinja: the template's text.
        placeholders: kind of medium → its placeholder in rendered texts.
        special: the names of the special tokens.

    Raises:
        SpecError: the template cannot be used for dialogues with such media.
    """

    def __init__(
        self,
        template: ChatTemplate | str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        kinds: Sequence[str],
        source: str,
    ) -> None:
        self._own = isinstance(template, ChatTemplate)
        self.jinja = template.jinja if isinstance(template, ChatTemplate) else template
        self._marks_answers = bool(_MARKS_ANSWERS.search(self.jinja))
        self._names = {
            name: token
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        }
        added = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        self.special = tuple(sorted({*tokenizer.all_special_tokens, *added}))
        self._as_parts, self.placeholders = True, {kind: PLACEHOLDERS[kind] for kind in kinds}
        self._escaped = any_of([*self.special, *PLACEHOLDERS.values()])
        if not self._own:
            self._choose_contents(tokenizer)
            self._check(source)

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """Render a whole dialogue.

        Raises:
            RenderError: the template refuses it, leaves out a turn, or hides where answers are.
        """
        messages = [self._message(turn, mark=not self._marks_answers) for turn in turns]
        text, answers = self._render(messages)
        self._check_complete(turns, text)
        if not self._marks_answers:
            answers = self._find_answers(turns, messages, text)
        return _clear(text, answers)

    def render_prompt(self, turns: Sequence[Turn], *, with_answers: bool = False) -> Rendered:
        """Render a dialogue that the assistant is to continue with an answer.

        Args:
            turns: those before the answer.
            with_answers: whether to say where the earlier answers are; without it, a template may
                hide that.

        Raises:
            RenderError: as `render`.
        """
        mark = with_answers and not self._marks_answers
        messages = [self._message(turn, mark=mark) for turn in turns]
        text, answers = self._render(messages, prompt=True)
        self._check_complete(turns, text)
        if mark:
            answers = self._find_answers(turns, messages, text)
        return _clear(text, answers if with_answers else ())

    def _render(
        self, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and the answers where the template marks them."""
        try:
            texts, answers = render_jinja_template(
                [[dict(message) for message in messages]],
                chat_template=self.jinja,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=self._marks_answers,
                **self._names,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RenderError(f"the chat template refuses it: {reason}") from error
        text = str(texts[0])
        if self._as_parts and not self._own and _PARTS_AS_PYTHON in text:
            raise RenderError("the chat template takes texts, not lists of parts")
        return text, [(start, end) for start, end in answers[0]] if self._marks_answers else []

    def _message(self, turn: Turn, *, mark: bool = False) -> dict[str, Any]:
        """Return a turn as a message, with its special tokens escaped and its answer's end marked.

        The mark is put before trailing whitespace, which a template may strip.
        """
        parts = [
            {"type": kind} if kind else {"type": "text", "text": self._escape(text)}
            for kind, text in split_media(turn.text)
        ]
        if not self._own and self._as_parts:
            parts = _without_line_breaks(parts)
        if mark and turn.role == "assistant" and parts:
            text = parts.pop()["text"] if "text" in parts[-1] else ""
            bare = text.rstrip()
            text = bare + _END * bool(bare or parts) + text[len(bare) :]
            parts.append({"type": "text", "text": text})
        if self._as_parts and not (self._own and len(parts) == 1 and "text" in parts[0]):
            return {"role": turn.role, "content": parts or [{"type": "text", "text": ""}]}
        texts = (part.get("text") or PLACEHOLDERS[part["type"]] for part in parts)
        return {"role": turn.role, "content": "".join(texts)}

    def _escape(self, text: str) -> str:
        if _NONCHARACTERS.search(text):
            raise RenderError("its text contains a noncharacter (U+FDD0 to U+FDEF)")
        return self._escaped.sub(lambda found: _ESCAPE + found[0], text)

    def _find_answers(
        self, turns: Sequence[Turn], messages: Sequence[Mapping[str, Any]], text: str
    ) -> list[tuple[int, int]]:
        """Return where answers are: each starts where the prompt for it ends.

        It goes on to the mark of its end, and includes a special token that follows.
        """
        answers = []
        end_token = re.compile(rf"{_END}?\s*(?:{any_of(self.special).pattern})")
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            if not number:
                raise RenderError("the chat template hides where a first turn's answer starts")
            prompt, _ = self._render(messages[:number], prompt=True)
            if not text.startswith(prompt):
                raise RenderError(
                    "the chat template hides where an answer starts: the prompt for it ends with "
                    f"{_clear(prompt).text[-30:]!r}, which the dialogue with the answer has not"
                )
            start = len(prompt)
            end = text.find(_END, start) if turn.text.strip() else start
            if end < 0:
                raise RenderError("the chat template leaves out an answer or its end")
            found = end_token.match(text, end)
            answers.append((start, found.end() if found else end))
        return answers

    def _check_complete(self, turns: Sequence[Turn], text: str) -> None:
        """Raise RenderError where a turn that is not an answer is not in the text."""
        for turn in turns:
            if turn.role == "assistant":  # of which some templates leave out the reasoning
                continue
            for kind, words in split_media(turn.text):
                if not kind and self._escape(words).strip() not in text:
                    raise RenderError(f"the chat template leaves out a turn of the {turn.role}")

    def _choose_contents(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Find out whether the template takes texts, or lists of parts as a processor's does.

        Where it writes the placeholders of all media itself, that is left to it.
        """
        own = {kind: getattr(tokenizer, f"{kind}_token", None) for kind in self.placeholders}
        named = {kind: token or PLACEHOLDERS[kind] for kind, token in own.items()}
        parts = [{"type": kind} for kind in named]
        written = self._writes([*parts, {"type": "text", "text": _PROBE}])
        writes_media = bool(named) and all(token in written for token in named.values())
        self._as_parts = writes_media or not self._writes(_PROBE)
        if self._as_parts:
            self.placeholders = named
            self._escaped = any_of([*self.special, *PLACEHOLDERS.values(), *named.values()])

    def _writes(self, content: str | list[dict[str, str]]) -> str:
        """Return how a user's turn is written; empty if it cannot be."""
        self._as_parts = not isinstance(content, str)
        try:
            text, _ = self._render([{"role": "user", "content": content}])
        except RenderError:
            return ""
        return text if _PROBE in text else ""

    def _check(self, source: str) -> None:
        """Raise SpecError for a template that does not render a simple dialogue."""
        texts = (f"{_PROBE}?", "yes", "sure?", "no")
        turns = [
            Turn(role=role, text=text)
            for role, text in zip(("user", "assistant") * 2, texts, strict=True)
        ]
        try:
            whole, prompt = self.render(turns), self.render_prompt(turns[:3])
            if len(whole.answers) != 2 or not whole.text.startswith(prompt.text):
                raise RenderError("the chat template hides where answers are")
            before, _ = self._render([self._message(turn) for turn in turns[:3]])
            role = whole.text[len(before) : whole.text.rindex(texts[-1])].strip()
            if prompt.text == before and role:
                raise RenderError("the chat template has no prompt for an answer")
        except RenderError as error:
            raise SpecError(
                f"the chat template of {source} cannot be used ({error}); "
                "set model.backbone.template"
            ) from error


def with_feedback(turns: Sequence[Turn], feedback: str) -> tuple[Turn, ...]:
    """Return a prompt that begins its last user turn with feedback about the answer to come."""
    last = max((n for n, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None or not feedback:
        return tuple(turns)
    conditioned = replace(turns[last], text=f"{feedback}\n{turns[last].text}")
    return (*turns[:last], conditioned, *turns[last + 1 :])


def plain_turns(
    turns: Sequence[Turn], generated: Sequence[str] = (), *, asks_for_media: bool = False
) -> list[Turn]:
    """Return dialogues without the user's texts, for `PLAIN`.

    A user turn that asks for a medium to be generated, for example its caption, keeps its text:
    nothing else tells the model what to generate.

    Args:
        turns: of the dialogue.
        generated: placeholders of the media that the assistant generates.
        asks_for_media: whether the answer after the last turn is to hold such media.
    """
    plain = []
    unknown = Turn(role="assistant", text="".join(generated if asks_for_media else ()))
    for turn, following in zip(turns, [*turns[1:], unknown], strict=True):
        if turn.role == "assistant":
            plain.append(turn)
            continue
        answer = following.text if following.role == "assistant" else ""
        asked = set(PLACEHOLDER_PATTERN.findall(answer)) & set(generated)
        text = turn.text if asked else "".join(PLACEHOLDER_PATTERN.findall(turn.text))
        plain.append(Turn(role="user", text=text))
    return plain


def assistant_text(turns: Sequence[Turn]) -> str:
    """Return the assistant's texts joined into one, without placeholders."""
    texts = (words_of(turn.text) for turn in turns if turn.role == "assistant")
    return " ".join(" ".join(texts).split())


def _without_line_breaks(parts: list[dict[str, str]]) -> list[dict[str, str]]:
    """Drop the line break between a medium and a text: there a template decides what stands."""
    kept = []
    for before, part, after in zip([None, *parts], parts, [*parts[1:], None], strict=False):
        text = part.get("text")
        if text is not None:
            text = text.removeprefix("\n") if before and "text" not in before else text
            text = text.removesuffix("\n") if after and "text" not in after else text
        if text != "":
            kept.append(part if text is None else part | {"text": text})
    return kept


def any_of(names: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern of any of these names, of several at one place the longest."""
    ordered = sorted(set(names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or "(?!)")


def _clear(text: str, answers: Sequence[tuple[int, int]] = ()) -> Rendered:
    """Return a rendered text without marks and escapes."""
    marks = [found.start() for found in re.finditer(f"[{_ESCAPE}{_END}]", text)]

    def place(position: int) -> int:
        return position - bisect_left(marks, position)

    return Rendered(
        text=re.sub(f"[{_ESCAPE}{_END}]", "", text),
        literal=frozenset(place(mark) for mark in marks if text[mark] == _ESCAPE),
        answers=tuple((place(start), place(end)) for start, end in answers),
    )
