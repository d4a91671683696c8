"""Operations on text and on published sizes, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from etl.filters.base import Verdict
from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS


def caption_length(table: pa.Table, *, minimum: int, maximum: int | None) -> Verdict:
    """Drop captions shorter or longer than the bounds, in characters; surrounding blanks are none.

    Args:
        table: needs `caption` (string; null counts as empty).
        minimum: the fewest characters kept.
        maximum: the most characters kept, if bounded.
    """
    lengths = pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(table["caption"], "")))
    reasons: list[str | None] = []
    for length in lengths.to_pylist():
        if length < minimum:
            reasons.append("caption_too_short")
        elif maximum is not None and length > maximum:
            reasons.append("caption_too_long")
        else:
            reasons.append(None)
    return Verdict(reasons=reasons)


def word_count(table: pa.Table, *, minimum: int, maximum: int | None) -> Verdict:
    """Drop captions of fewer or more words than the bounds; blanks part words.

    Args:
        table: needs `caption` (string; null is none, and kept).
        minimum: the fewest words kept.
        maximum: the most words kept, if bounded.
    """
    reasons: list[str | None] = []
    for caption in table["caption"].to_pylist():
        words = None if caption is None else len(caption.split())
        if words is not None and words < minimum:
            reasons.append("caption_too_few_words")
        elif words is not None and maximum is not None and words > maximum:
            reasons.append("caption_too_many_words")
        else:
            reasons.append(None)
    return Verdict(reasons=reasons)


def no_placeholders(table: pa.Table) -> Verdict:
    """Drop captions that hold a medium's placeholder: the text would claim a medium it lacks."""
    captions = table["caption"].to_pylist()
    return Verdict(
        reasons=[
            "placeholder_in_text" if PLACEHOLDER_PATTERN.search(text or "") else None
            for text in captions
        ]
    )


def one_image(table: pa.Table) -> Verdict:
    """Drop dialogues without exactly one `<image>` and no other placeholder, and empty ones.

    Args:
        table: needs `turns` (list of role and text).
    """
    reasons: list[str | None] = []
    for turns in table["turns"].to_pylist():
        found = [name for turn in turns for name in PLACEHOLDER_PATTERN.findall(turn["text"])]
        if not turns:
            reasons.append("no_turns")
        else:
            reasons.append(None if found == ["<image>"] else "placeholder_mismatch")
    return Verdict(reasons=reasons)


def declared_size(table: pa.Table, *, minimum: int, max_aspect: float) -> Verdict:
    """Drop rows whose published size is too small or too oblong, before they cost a download.

    Args:
        table: needs `declared_width` and `declared_height` (pixels; null or 0 is unknown).
        minimum: the least width and height kept.
        max_aspect: the largest ratio of the longer to the shorter side kept.
    """
    sizes = zip(
        table["declared_width"].to_pylist(), table["declared_height"].to_pylist(), strict=True
    )
    reasons: list[str | None] = []
    for width, height in sizes:
        if not width or not height:
            reasons.append(None)
        elif min(width, height) < minimum:
            reasons.append("declared_too_small")
        elif max(width, height) > max_aspect * min(width, height):
            reasons.append("declared_too_oblong")
        else:
            reasons.append(None)
    return Verdict(reasons=reasons)


def pair_caption(turns: Sequence[Mapping[str, str]]) -> str | None:
    """The caption of a pair: what the assistant says of a medium that is shown without a word.

    None of any other record.
    """
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        return None
    shown, told = (turn["text"] for turn in turns)
    return told if shown in PLACEHOLDERS.values() else None
