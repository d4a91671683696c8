"""Chat templates: a dialogue becomes spans of text, each a target of the loss or not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from etl.storage.schema import PLACEHOLDER_PATTERN, Turn
from model.spec import ChatTemplate


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A text; only one that comes `from_template` may contain special tokens."""

    text: str
    from_template: bool


@dataclass(frozen=True, kw_only=True)
class Span:
    """Segments that are tokenized together.

    Args:
        segments: the texts.
        is_answer: whether it is a turn of the assistant.
        is_target: whether its tokens are targets of the loss.
    """

    segments: tuple[Segment, ...]
    is_answer: bool
    is_target: bool


def apply_plain_template(turns: Sequence[Turn], generated: Collection[str] = ()) -> list[Span]:
    """Return the placeholders and the assistant's texts, without any template (MM-PT).

    A user turn that asks for a medium to be generated, for example its caption, keeps its text:
    nothing else tells the model what to generate.

    Args:
        turns: of the dialogue.
        generated: placeholders of the media that the assistant generates.
    """
    spans = []
    for turn, following in zip(turns, [*turns[1:], None], strict=True):
        if turn.role == "assistant":
            spans.append(_span([_plain_text(turn.text)], is_answer=True))
            continue
        answer = following.text if following and following.role == "assistant" else ""
        asks = any(placeholder in answer for placeholder in generated)
        text = turn.text if asks else "".join(PLACEHOLDER_PATTERN.findall(turn.text))
        spans.append(_span([_plain_text(text)], is_answer=False))
    return spans


def assistant_text(turns: Sequence[Turn]) -> str:
    """Return the assistant's texts joined into one, without placeholders."""
    texts = (turn.text for turn in turns if turn.role == "assistant")
    return " ".join(PLACEHOLDER_PATTERN.sub("", " ".join(texts)).split())


def apply_chat_template(turns: Sequence[Turn], template: ChatTemplate) -> list[Span]:
    """Return a dialogue in a backbone's template; only the assistant's texts are targets.

    The space before an answer belongs to the answer: a byte-level tokenizer joins it to the
    first word, and generation continues a prompt that ends without a space.
    """
    spans: list[Span] = []
    system, rounds = template.system, 0
    prompt: list[Segment] = []
    for turn in turns:
        if turn.role == "system":
            system = turn.text
        elif turn.role == "user":
            rounds += 1
            first = rounds == 1
            if first and system:
                prompt += _fill(template.around_system, system)
            after_system = template.user_after_system if first and system else None
            user = template.user if after_system is None else after_system
            prompt += _fill(user.replace("{round}", str(rounds)), turn.text)
        else:
            opening, _, closing = template.assistant.partition("{text}")
            lead = opening[len(opening.rstrip()) :]
            spans.append(_span([*prompt, _template_text(opening.rstrip())], is_answer=False))
            answer = [_template_text(lead), _plain_text(turn.text), _template_text(closing)]
            spans.append(_span(answer if turn.text else [], is_answer=True))
            prompt = [_template_text(template.after)]
    return spans


def _fill(template: str, text: str) -> list[Segment]:
    opening, _, closing = template.partition("{text}")
    return [_template_text(opening), _plain_text(text), _template_text(closing)]


def _template_text(text: str) -> Segment:
    return Segment(text=text, from_template=True)


def _plain_text(text: str) -> Segment:
    return Segment(text=text, from_template=False)


def _span(segments: Sequence[Segment], *, is_answer: bool) -> Span:
    nonempty = tuple(segment for segment in segments if segment.text)
    return Span(segments=nonempty, is_answer=is_answer, is_target=is_answer)


def split_special_tokens(span: Span, special_tokens: Sequence[str]) -> list[Segment]:
    """Split a span at the special tokens of its template; join the texts between them.

    Returns:
        Segments: those with `from_template` are one special token each, the others are text.
    """
    split: list[Segment] = []
    for segment in span.segments:
        pieces = (
            _split(segment.text, special_tokens)
            if segment.from_template
            else [_plain_text(segment.text)]
        )
        for piece in pieces:
            if split and not piece.from_template and not split[-1].from_template:
                split[-1] = replace(split[-1], text=split[-1].text + piece.text)
            else:
                split.append(piece)
    return split


def _split(text: str, special_tokens: Sequence[str]) -> list[Segment]:
    """Split a text at special tokens: at the earliest, and of two there, at the longer one."""
    split: list[Segment] = []
    while text:
        found = [
            (text.find(token), -len(token), token) for token in special_tokens if token in text
        ]
        if not found:
            return [*split, _plain_text(text)]
        start, _, token = min(found)
        if start:
            split.append(_plain_text(text[:start]))
        split.append(_template_text(token))
        text = text[start + len(token) :]
    return split
