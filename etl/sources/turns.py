"""Turns of a dialogue in the spellings of their publishers, and the media that they name.

Speakers and texts are `{from, value}` (LLaVA, ShareGPT), `{role, content}` (OpenAI, TRL, ms-swift,
LLaMA-Factory) with a text or a list of parts, or `{human, assistant}` (ms-swift). A medium is a
placeholder, whose medium a field of the record names, or is named in place: as a part, as
`<img>path</img>` (Qwen-VL), or as `<Image>name.jpg</Image>` (NExT-GPT).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.sources.base import BadRecordError, MediaRef, Record
from etl.sources.fields import is_medium, lineage_fields, media_fields
from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS, Turn

ROLES = {
    **dict.fromkeys(("human", "user", "observation", "tool", "tool_response"), "user"),
    **dict.fromkeys(
        ("gpt", "assistant", "chatgpt", "bot", "function_call", "tool_call"), "assistant"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Speaker names in these files → role. LLaMA-Factory (data/README.md) and ms-swift (Custom-dataset,
Agent Format) learn the calls of tools as the assistant's turns, and not what the tools answer."""

_KINDS = {
    **{"image": "image", "img": "image", "video": "video", "audio": "audio"},
    **dict.fromkeys(("points", "point", "pcl", "pointcloud", "point_cloud"), "points"),
}
_WORD = "image|video|audio|points?|pcl|pointcloud|point_cloud"
_MEDIA = re.compile(
    r"(?<!\\)(?:"
    r"<(?P<tag>img|image|video|audio)>\s*(?P<name>[^<>\n]+?)\s*(?P<end></(?P=tag)>)"
    r"|<Img>\s*<(?P<minigpt4>image)Here>\s*</Img>"
    r"|(?:<\|(?:vision_start|audio_bos)\|>)?"
    rf"<\|?(?P<word>{_WORD})(?:here|_placeholder|_pad|_?(?P<number>\d\d?))?\|?>"
    r"(?:<\|(?:vision_end|audio_eos)\|>)?"
    r")",
    re.IGNORECASE,
)
"""Media named in place, and the placeholder spellings in these files; with a backslash before it,
one is plain text."""

Named = MediaRef | int | str | None
"""What stands behind a placeholder: a medium named in place; the number of one among the record's,
counted from 0, or as digits in `<image_1>`, counted from 0 or 1; or the next of the record's."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Turns with placeholders in our spelling, and what each of these names, in order."""

    turns: tuple[Turn, ...]
    named: tuple[Named, ...] = ()

    def __add__(self, other: Dialogue) -> Dialogue:
        """This dialogue followed by another."""
        return Dialogue(turns=self.turns + other.turns, named=self.named + other.named)


def say(role: str, text: str) -> Dialogue:
    """A single turn; see `Dialogue`."""
    text, named = _read_text(text)
    return Dialogue(turns=(Turn(role=role, text=text),), named=named)


def question_answer(question: str, answer: str) -> Dialogue:
    """The two turns of a question and its answer."""
    return say("user", question) + say("assistant", answer)


def parse_turns(turns: Any) -> Dialogue:  # noqa: ANN401 - parsed JSON
    """The turns of a list of `{from, value}`, `{role, content}` or `{human, assistant}`.

    Raises:
        BadRecordError: it is no such list, or a turn has what a sample cannot hold.
    """
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a list in a parquet column
        try:
            turns = json.loads(turns)
        except ValueError:
            raise BadRecordError("its turns are a text that is not JSON") from None
    if isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], list):
        turns = turns[0]  # LLaVA-RLHF
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRecordError(f"want a list of turns such as {{from, value}}, got {turns!r:.60}")
    whole = Dialogue(turns=())
    for turn in turns:
        whole += _parse_turn(turn)
    return whole


def _parse_turn(turn: Mapping[str, Any]) -> Dialogue:
    speaker = next((turn[key] for key in ("from", "role") if turn.get(key)), None)
    if speaker is None and {"human", "assistant"} <= set(turn):
        return parse_turns([{"role": who, "content": turn[who]} for who in ("human", "assistant")])
    content = next((turn[key] for key in ("value", "content") if turn.get(key) is not None), None)
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise BadRecordError(
            f"want turns of {{from, value}} or {{role, content}}, from one of {', '.join(ROLES)}; "
            f"got {dict(turn)!r:.80}"
        )
    if turn.get("tool_calls"):
        raise BadRecordError("a turn has tool_calls; calls are read from function_call turns only")
    if turn.get("loss") is False or turn.get("weight") == 0:
        raise BadRecordError("a turn is marked as not to be learned, which a sample cannot hold")
    if isinstance(content, str):
        text, named = _read_text(content)
    elif isinstance(content, list | dict):
        text, named = _read_parts(content)
    else:
        raise BadRecordError(f"a turn's text is {content!r:.60}, want a text or a list of parts")
    refs = _own_media(turn) if len(turn) > 2 else []
    if refs and named.count(None) == len(refs):
        rest = iter(refs)
        named = tuple(next(rest) if one is None else one for one in named)
    elif refs:
        text = "".join(f"{PLACEHOLDERS[ref.kind]}\n" for ref in refs) + text
        named = (*refs, *named)
    return Dialogue(turns=(Turn(role=role, text=text),), named=named)


def _own_media(turn: Mapping[str, Any]) -> list[MediaRef]:
    """The media in fields of a turn; BadRecordError if one of another name holds media."""
    own = media_fields(turn)
    lineage_fields(turn, "from", "role", "value", "content", *own)
    return [ref for found in own.values() for ref in found]


def _read_text(text: str) -> tuple[str, tuple[Named, ...]]:
    """A text with placeholders in our spelling, and what they name."""
    if "<" not in text:
        return text, ()
    named: list[Named] = []

    def respell(match: re.Match[str]) -> str:
        kind = _KINDS[(match["tag"] or match["minigpt4"] or match["word"]).lower()]
        is_named = match["tag"] and (match["tag"].lower() == "img" or is_medium(match["name"]))
        named.append(MediaRef(kind=kind, url=match["name"]) if is_named else match["number"])
        # `<image>a text</image>` is a placeholder, a text and a tag.
        rest = "" if is_named or not match["tag"] else match["name"] + match["end"]
        return PLACEHOLDERS[kind] + rest

    return _MEDIA.sub(respell, text), tuple(named)


_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_PARTS = {
    f"{prefix}{kind}{suffix}": kind
    for kind in ("image", "video", "audio")
    for prefix, suffix in (("", ""), ("", "_url"), ("input_", ""))
}


def _read_parts(content: Any) -> tuple[str, tuple[Named, ...]]:  # noqa: ANN401
    """The text of a list of parts as OpenAI, TRL or Anthropic have them."""
    text = ""
    named: list[Named] = []
    for part in content if isinstance(content, list) else [content]:
        piece, found = _read_text(part) if isinstance(part, str) else _read_part(part)
        apart = text and not text.endswith("\n") and not piece.startswith("\n")
        text += f"\n{piece}" if apart else piece
        named += found
    return text, tuple(named)


def _read_part(part: Any) -> tuple[str, Sequence[Named]]:  # noqa: ANN401
    if not isinstance(part, dict):
        raise BadRecordError(f"a part of a turn is {part!r:.60}, want a text or an object")
    kind_of_part = part.get("type") or next(
        (key for key in (*_TEXT_PARTS, *_MEDIA_PARTS) if part.get(key) is not None), None
    )
    if kind_of_part in _TEXT_PARTS:
        text = part.get("text", part.get(str(kind_of_part)))
        if not isinstance(text, str):
            raise BadRecordError(f"a part's text is {text!r:.60}")
        return _read_text(text)
    if kind_of_part not in _MEDIA_PARTS:
        known = ", ".join((_TEXT_PARTS[0], *_MEDIA_PARTS))
        raise BadRecordError(f"a part of type {kind_of_part!r}, want one of {known}")
    kind = _MEDIA_PARTS[kind_of_part]
    keys = (kind_of_part, kind, f"{kind}_url", "source", "url", "path", "bytes")
    value = next((part[key] for key in keys if part.get(key)), None)
    if value is None:
        index = part.get("index")
        return PLACEHOLDERS[kind], [index if isinstance(index, int) else None]
    return PLACEHOLDERS[kind], [MediaRef(kind=kind, url=_part_url(value, kind))]


def _part_url(value: Any, kind: str) -> str:  # noqa: ANN401
    """The name, URL or data URL of a medium in a part."""
    if isinstance(value, dict):
        data, form = value.get("data"), value.get("media_type") or value.get("format")
        if isinstance(data, str):  # Anthropic's source, OpenAI's input_audio
            mime = form if "/" in str(form) else f"{kind}/{form or '*'}"
            value = data if data.startswith("data:") else f"data:{mime};base64,{data}"
        else:
            value = value.get("url") or value.get("path")
    if not isinstance(value, str) or not value:
        raise BadRecordError(f"a part of type {kind!r} names no medium: {value!r:.60}")
    return value.removeprefix("file://")


def make_record(
    dialogue: Dialogue,
    media: Iterable[MediaRef] = (),
    **rest: Any,  # noqa: ANN401 - further fields of `Record`
) -> Record:
    """A record of a dialogue and the media that its record names.

    Media named in place keep their place. The others stand behind the other placeholders, those of
    a kind in order; if there is no such placeholder, they come first. Where the numbers do not
    match, both are left as they are, and the filter `placeholders` drops the record.
    """
    media = list(media)
    free = [one for one in dialogue.named if not isinstance(one, MediaRef)]
    in_place = tuple(one for one in dialogue.named if isinstance(one, MediaRef))
    if not free:
        if not {ref.url for ref in media} <= {ref.url for ref in in_place}:
            dialogue = _prepend(dialogue, media)  # else the fields repeat what the text names
        refs = tuple(one for one in dialogue.named if isinstance(one, MediaRef))
        return Record(turns=dialogue.turns, media=refs, **rest)
    kinds = [
        _KINDS[token.strip("<>")]
        for turn in dialogue.turns
        if "<" in turn.text
        for token in PLACEHOLDER_PATTERN.findall(turn.text)
    ]
    dialogue, kinds = _respell(dialogue, kinds, media)
    bound = _bind(dialogue.named, kinds, media)
    return Record(turns=dialogue.turns, media=bound or (*in_place, *media), **rest)


def _prepend(dialogue: Dialogue, media: Sequence[MediaRef]) -> Dialogue:
    """A dialogue with media's placeholders at the start of the first user turn."""
    turns = dialogue.turns
    index = next((n for n, turn in enumerate(turns) if turn.role == "user"), None)
    if index is None:
        return Dialogue(turns=turns, named=(*media, *dialogue.named))
    head = "".join(f"{PLACEHOLDERS[ref.kind]}\n" for ref in media)
    first = Turn(role="user", text=head + turns[index].text)
    before = sum(len(PLACEHOLDER_PATTERN.findall(turn.text)) for turn in turns[:index])
    return Dialogue(
        turns=(*turns[:index], first, *turns[index + 1 :]),
        named=(*dialogue.named[:before], *media, *dialogue.named[before:]),
    )


def _respell(
    dialogue: Dialogue, kinds: list[str], media: Sequence[MediaRef]
) -> tuple[Dialogue, list[str]]:
    """A dialogue with `<video>` where `<image>` stands for each of its videos (LLaVA-NeXT).

    Args:
        dialogue: with placeholders.
        kinds: of its placeholders.
        media: that the record names.

    Returns:
        the dialogue and the kinds of its placeholders.
    """
    free = {n for n, one in enumerate(dialogue.named) if not isinstance(one, MediaRef)}
    shown = {ref.kind for ref in media}
    if len(shown) != 1 or shown == {"image"} or len(free) != len(media):
        return dialogue, kinds
    if {kinds[n] for n in free} != {"image"}:
        return dialogue, kinds
    kinds = [media[0].kind if n in free else kind for n, kind in enumerate(kinds)]
    rest = iter(kinds)
    turns = tuple(
        Turn(
            role=turn.role,
            text=PLACEHOLDER_PATTERN.sub(lambda _: PLACEHOLDERS[next(rest)], turn.text),
        )
        for turn in dialogue.turns
    )
    return Dialogue(turns=turns, named=dialogue.named), kinds


def _bind(
    named: Sequence[Named], kinds: Sequence[str], media: Sequence[MediaRef]
) -> tuple[MediaRef, ...] | None:
    """The medium behind each placeholder; None unless every medium stands behind one.

    Raises:
        BadRecordError: it gives numbers of media, and not of all of them.
    """
    by_kind = {kind: [ref for ref in media if ref.kind == kind] for kind in PLACEHOLDERS}
    used: dict[str, list[int]] = {kind: [] for kind in PLACEHOLDERS}
    bound: list[MediaRef] = []
    first = 0 if 0 in [int(one) for one in named if isinstance(one, str)] else 1
    for kind, one in zip(kinds, named, strict=True):
        if isinstance(one, MediaRef):
            bound.append(one)
            continue
        number = len(used[kind]) if one is None else int(one)
        number -= first if isinstance(one, str) else 0
        used[kind].append(number)
        bound += by_kind[kind][number : number + 1]
    if all(set(used[kind]) == set(range(len(by_kind[kind]))) for kind in PLACEHOLDERS):
        return tuple(bound)
    if any(isinstance(one, int | str) for one in named):
        numbers = ", ".join(f"{kind} {found}" for kind, found in used.items() if found)
        raise BadRecordError(f"it shows {numbers} (counted from 0) of {len(media)} media")
    return None
