"""Filters on captions and on published sizes, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from etl.filters.base import FilterResult
from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS


def caption_length(table: pa.Table, *, minimum: int, maximum: int | None) -> FilterResult:
    """Drop captions that are too short or too long, in characters without surrounding blanks.

    Args:
        table: needs `caption` (string; null counts as empty).
        minimum: the minimum length.
        maximum: the maximum length, if limited.
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
    return FilterResult(reasons=reasons)


def word_count(table: pa.Table, *, minimum: int, maximum: int | None) -> FilterResult:
    """Drop captions with too few or too many words, as separated by blanks.

    Args:
        table: needs `caption` (string; a row without one is kept).
        minimum: the minimum number of words.
        maximum: the maximum number of words, if limited.
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
    return FilterResult(reasons=reasons)


def no_placeholders(table: pa.Table) -> FilterResult:
    """Drop captions that contain a medium's placeholder: it would stand for a missing medium."""
    captions = table["caption"].to_pylist()
    return FilterResult(
        reasons=[
            "placeholder_in_text" if PLACEHOLDER_PATTERN.search(text or "") else None
            for text in captions
        ]
    )


def declared_size(table: pa.Table, *, minimum: int, max_aspect: float) -> FilterResult:
    """Drop rows whose published image size is out of bounds, before they cost a download.

    Args:
        table: needs `declared_width` and `declared_height` (pixels; null or 0 is unknown).
        minimum: the minimum width and height.
        max_aspect: the maximum ratio of the longer to the shorter side.
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
            reasons.append("declared_aspect_too_large")
        else:
            reasons.append(None)
    return FilterResult(reasons=reasons)


def pair_caption(turns: Sequence[Mapping[str, str]]) -> str | None:
    """The caption of a pair: the assistant's text after a user turn that is only a placeholder.

    None for any other record.
    """
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        return None
    user, assistant = (turn["text"] for turn in turns)
    return assistant if user in PLACEHOLDERS.values() else None
