"""Dialogues as texts: what a template says around the turns, and which texts are targets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from etl.storage.schema import PLACEHOLDER_PATTERN, Turn
from model.spec import ChatTemplate


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A text, and whether it is the template's own: only there may special tokens be named."""

    text: str
    own: bool


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Texts that are tokenized together.

    Args:
        segments: the texts.
        answers: whether the assistant says them.
        learnt: whether they are targets.
    """

    segments: tuple[Segment, ...]
    answers: bool
    learnt: bool


def plain(turns: Sequence[Turn], drawn: Collection[str] = ()) -> list[Piece]:
    """Return the placeholders and the assistant's texts, without any template (MM-PT).

    What asks for a medium that the assistant draws, its caption say, stays whole: the medium is
    told from that alone.

    Args:
        turns: what is said.
        drawn: placeholders of media that the assistant draws.
    """
    pieces = []
    for turn, following in zip(turns, [*turns[1:], None], strict=True):
        if turn.role == "assistant":
            pieces.append(_piece([_said(turn.text)], learnt=True))
            continue
        answer = following.text if following and following.role == "assistant" else ""
        asks = any(placeholder in answer for placeholder in drawn)
        text = turn.text if asks else "".join(PLACEHOLDER_PATTERN.findall(turn.text))
        pieces.append(_piece([_said(text)], learnt=False))
    return pieces


def assistant_text(turns: Sequence[Turn]) -> str:
    """Return the assistant's texts as one, without placeholders."""
    texts = (turn.text for turn in turns if turn.role == "assistant")
    return " ".join(PLACEHOLDER_PATTERN.sub("", " ".join(texts)).split())


def chat(turns: Sequence[Turn], template: ChatTemplate) -> list[Piece]:
    """Return a dialogue in a backbone's template; only the assistant's texts are targets.

    The blank before an answer belongs to the answer: a byte-level tokenizer joins it to the
    first word, and generation goes on from a prompt that ends without a blank.
    """
    pieces: list[Piece] = []
    system, asked = template.system, 0
    before: list[Segment] = []
    for turn in turns:
        if turn.role == "system":
            system = turn.text
        elif turn.role == "user":
            asked += 1
            first = asked == 1
            if first and system:
                before += _fill(template.around_system, system)
            after_system = template.user_after_system if first and system else None
            words = template.user if after_system is None else after_system
            before += _fill(words.replace("{round}", str(asked)), turn.text)
        else:
            opening, _, closing = template.assistant.partition("{text}")
            lead = opening[len(opening.rstrip()) :]
            pieces.append(_piece([*before, _own(opening.rstrip())], learnt=False))
            answer = [_own(lead), _said(turn.text), _own(closing)] if turn.text else []
            pieces.append(_piece(answer, learnt=True))
            before = [_own(template.after)]
    return pieces


def _fill(words: str, text: str) -> list[Segment]:
    opening, _, closing = words.partition("{text}")
    return [_own(opening), _said(text), _own(closing)]


def _own(text: str) -> Segment:
    return Segment(text=text, own=True)


def _said(text: str) -> Segment:
    return Segment(text=text, own=False)


def _piece(segments: Sequence[Segment], *, learnt: bool) -> Piece:
    spoken = tuple(segment for segment in segments if segment.text)
    return Piece(segments=spoken, answers=learnt, learnt=learnt)


def without_special(piece: Piece, special: Sequence[str]) -> list[Segment]:
    """Cut a piece where the template names a special token; join what is tokenized together.

    Returns:
        Segments of which those with `own` are one special token each, all others text.
    """
    cut: list[Segment] = []
    for segment in piece.segments:
        parts = _cut(segment.text, special) if segment.own else [_said(segment.text)]
        for part in parts:
            if cut and not part.own and not cut[-1].own:
                cut[-1] = replace(cut[-1], text=cut[-1].text + part.text)
            else:
                cut.append(part)
    return cut


def _cut(text: str, special: Sequence[str]) -> list[Segment]:
    """Split a text at special tokens, the earliest and then the longest first."""
    parts: list[Segment] = []
    while text:
        found = [(text.find(token), -len(token), token) for token in special if token in text]
        if not found:
            return [*parts, _said(text)]
        start, _, token = min(found)
        if start:
            parts.append(_said(text[:start]))
        parts.append(_own(token))
        text = text[start + len(token) :]
    return parts
