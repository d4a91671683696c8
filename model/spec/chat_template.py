"""The format of a dialogue: a compact description, compiled to a chat template of transformers.

Templates are rendered by transformers alone, from Jinja text: a checkpoint's own, or `jinja` of a
`ChatTemplate`. So a preset's format can be exported as a file that other programs understand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

_SLOTS = re.compile(r"\{(media|medium|text|round0|round|bos|eos)\}")
_VARIABLES = {
    "media": "('' if content is string else media(content))",
    "medium": "medium",
    "text": "words",
    "round": "ns.round",
    "round0": "(ns.round - 1)",
    "bos": "bos_token",
    "eos": "eos_token",
}

_JINJA = "".join(
    line.strip()
    for line in """
{%- macro join(content, leads=false) -%}
    {%- set ns = namespace(lead=leads) -%}
    {%- for part in content -%}
        {%- if part.type == 'text' -%}
            {{ part.text.lstrip() if ns.lead and not loop.first else part.text }}
            {%- set ns.lead = false -%}
        {%- elif WITH_MEDIA@ and not ns.lead -%}{{ '<' ~ part.type ~ '>' }}{%- endif -%}
    {%- endfor -%}
{%- endmacro -%}
{%- macro media(content) -%}
    {%- set ns = namespace(lead=true) -%}
    {%- for part in content -%}
        {%- if part.type == 'text' -%}{%- set ns.lead = false -%}
        {%- elif ns.lead -%}
            {%- set medium = '<' ~ part.type ~ '>' -%}{{ MEDIUM@ }}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro -%}
{%- macro once(turn, ended) -%}
    {{ turn[(OVERLAP@)|length:] if ended and turn.startswith(OVERLAP@) else turn }}
{%- endmacro -%}
{%- set ns = namespace(system=SYSTEM@, first=true, round=0, ended=false) -%}
{%- for message in messages -%}
    {%- set role, content = message.role, message.content -%}
    {%- set words = content if content is string else join(content, LEADS@ and role == 'user') -%}
    {%- if role == 'system' -%}
        {%- if not loop.first -%}
            {{ raise_exception('it has a system turn that is not the first turn') }}
        {%- endif -%}
        {%- set ns.system = words -%}
    {%- else -%}
        {%- if ns.first and ns.system -%}
            {%- if USER_FIRST@ and role != 'user' -%}
                {{ raise_exception('its system prompt belongs to a first turn of the user') }}
            {%- endif -%}
            {{ AROUND_SYSTEM@ }}
        {%- endif -%}
        {%- if role == 'user' -%}
            {%- set ns.round = ns.round + 1 -%}
            {%- if ns.first and ns.system -%}{{ USER_AFTER_SYSTEM@ }}
            {%- else -%}{{ USER_ONCE@ }}{%- endif -%}
            {%- set ns.ended = false -%}
        {%- else -%}
            {{ PROMPT_ONCE@ }}
            {%- set ns.ended = false -%}
            {%- if HAS_END@ -%}
                {% generation %}{{ ANSWER@ }}
                {{ END@ if loop.last and not add_generation_prompt else BETWEEN@ }}
                {% endgeneration %}
                {%- if not loop.last or add_generation_prompt -%}
                    {%- set ns.ended = true -%}{{ AFTER@ }}
                {%- endif -%}
            {%- endif -%}
        {%- endif -%}
        {%- set ns.first = false -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ PROMPT_ONCE@ }}{%- endif -%}
""".splitlines()
)
"""A chat template whose names before `@` are expressions of a `ChatTemplate`."""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How the turns of a dialogue become one text; `{text}` is a turn's text.

    In a user's turn `{media}` stands for the media at its beginning, each written as `medium` says;
    without it, media stay where the text has them. `{round}` and `{round0}` are the number of the
    exchange, counted from 1 and from 0; `{bos}` is the token for the beginning of a sequence, which
    need not be written where the tokenizer adds it. The template's own texts may contain special
    tokens by name (`<|im_start|>`), which the tokenizer parses; in a turn's text they are plain
    text.

    An end that also begins the next turn (`###`) is written once, as part of the answer. A system
    turn may only be the first one.

    Args:
        system: the default system prompt; a sample's own replaces it.
        around_system: template of a system prompt that is not empty.
        user, assistant: templates of their turns.
        user_after_system: template of the first user's turn after a system prompt, if different:
            LLaMA-2 puts the system prompt inside the first turn.
        medium: template of each medium at the beginning of a user's turn.
        end: end of an answer, a target like the answer itself; None for the tokenizer's
            end-of-sequence token.
        end_between: the same for an answer that another turn follows; None for `end`.
        end_empty: whether an empty answer in a dialogue has an end, too.
        after: text between the end of an answer and the next turn.
        media_first: whether all media of a dialogue stand before the beginning of the sequence, and
            the text is tokenized by itself (BLIP-2).
    """

    system: str = ""
    around_system: str = "{text} "
    user: str = "USER: {media}{text} "
    user_after_system: str | None = None
    medium: str = "{medium}\n"
    assistant: str = "ASSISTANT: {text}"
    end: str | None = None
    end_between: str | None = None
    end_empty: bool = True
    after: str = ""
    media_first: bool = False

    @property
    def jinja(self) -> str:
        """The chat template as Jinja text, with the assistant's words in `{% generation %}`.

        Contents of messages may be texts or, as in transformers' processors, lists of parts.
        """
        opening, _, closing = self.assistant.partition("{text}")
        prompt = opening.rstrip(" ")  # generation continues a prompt without the space
        answer = opening[len(prompt) :] + "{text}" + closing
        end = "{eos}" if self.end is None else self.end
        between = end if self.end_between is None else self.end_between
        after_system = self.user if self.user_after_system is None else self.user_after_system
        overlap = _overlap(between, [_opening(self.user), _opening(self.medium), prompt])
        once = "once({}, ns.ended)" if overlap else "{}"
        values = {
            "SYSTEM": _literal(self.system),
            "AROUND_SYSTEM": _expression(self.around_system, text="ns.system"),
            "USER_FIRST": "false" if self.user_after_system is None else "true",
            "USER_AFTER_SYSTEM": _expression(after_system),
            "USER_ONCE": once.format(_expression(self.user)),
            "PROMPT_ONCE": once.format(_literal(prompt)),
            "MEDIUM": _expression(self.medium),
            "ANSWER": _expression(answer),
            "HAS_END": "true" if self.end_empty else "words",
            "END": _expression(end),
            "BETWEEN": _expression(between),
            "AFTER": _literal(self.after),
            "OVERLAP": _literal(overlap),
            "LEADS": "true" if self.media_first or "{media}" in self.user else "false",
            "WITH_MEDIA": "false" if self.media_first else "true",
        }
        return re.sub(r"([A-Z_]+)@", lambda found: values[found[1]], _JINJA)


def _expression(template: str, text: str = "words") -> str:
    """Return a template with slots as a Jinja expression."""
    pieces = _SLOTS.split(template)
    variables = _VARIABLES | {"text": text}
    terms = [
        variables[piece] if number % 2 else _literal(piece)
        for number, piece in enumerate(pieces)
        if number % 2 or piece
    ]
    return " ~ ".join(terms) or "''"


def _opening(template: str) -> str:
    """Return the text before a template's first slot, other than that of leading media."""
    return _SLOTS.split(template.removeprefix("{media}"))[0]


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _overlap(end: str, openings: Sequence[str]) -> str:
    """Return the longest text that ends an answer and also begins a turn."""
    found = [
        end[start:]
        for start in range(len(end))
        for opening in openings
        if opening.startswith(end[start:])
    ]
    return max(found, key=len, default="")
