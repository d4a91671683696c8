"""Filters on whole records, before their media are fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa

from etl.filters.base import FilterFunction, FilterResult
from etl.filters.urls import EMBEDDED, check_urls
from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS

MEDIA = pa.list_(
    pa.struct(
        [
            ("kind", pa.string()),
            ("url", pa.large_string()),
            ("start", pa.float64()),
            ("length", pa.float64()),
        ]
    )
)
"""A record's media, as readers name them: where each is, and which segment of it (seconds)."""


def well_formed(table: pa.Table) -> FilterResult:
    """Drop rows that their reader could not parse, and records without turns or answers.

    A record has no answer (`no_answer`) if no turn is an assistant's, or if an answer, be it chosen
    or rejected, is empty. The answers of pairs are their captions, which have filters of their own.

    Args:
        table: needs `parse_error` (string; null if there is none) and `turns`; `caption` and
            `rejected` where there are any.
    """
    names = ("parse_error", "turns", "caption", "rejected")
    columns = [
        table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
        for name in names
    ]
    found = [_flaw(*row) for row in zip(*columns, strict=True)]
    return FilterResult(
        reasons=[reason for reason, _ in found], details=[detail for _, detail in found]
    )


def _flaw(
    error: str | None,
    turns: Sequence[Mapping[str, str]],
    caption: str | None,
    rejected: Sequence[Mapping[str, str]] | None,
) -> tuple[str | None, str | None]:
    """Why a record is dropped, if so, and the detail."""
    if error:
        return "bad_record", error
    if not turns:
        return "no_turns", None
    answers = [turn["text"] for turn in turns if turn["role"] == "assistant"]
    texts = [*answers, *(turn["text"] for turn in rejected or ())]
    if not texts:
        return "no_answer", "no turn is an assistant's"
    if caption is None and not all(text.strip() for text in texts):
        return "no_answer", "an answer is empty"
    return None, None


def readable(table: pa.Table) -> FilterResult:
    """Drop rows of which their reader could not read a value.

    Args:
        table: needs `parse_error` (string; null if there is none).
    """
    errors = table["parse_error"].to_pylist()
    return FilterResult(
        reasons=["bad_record" if error else None for error in errors], details=errors
    )


def check_media_urls(table: pa.Table, *, allow_private: bool, local: bool) -> FilterResult:
    """Drop records that have a medium with an invalid URL; see `check_urls` for the reasons.

    Args:
        table: needs `media`; a record without media is kept.
        allow_private: keep private and loopback addresses.
        local: whether there are local media, whose names are not URLs; without them such a record
            is dropped as `no_media`.
    """
    rows = [[ref["url"] for ref in media] for media in table["media"].to_pylist()]
    distinct = {url for urls in rows for url in urls if not url.startswith(("data:", EMBEDDED))}
    reasons: dict[str, str | None] = dict.fromkeys(distinct, None if local else "no_media")
    web = [url for url in distinct if "://" in url and not url.lower().startswith("file:")]
    result = check_urls(pa.table({"url": pa.array(web)}), allow_private=allow_private)
    reasons.update(zip(web, result.reasons, strict=True))
    return FilterResult(reasons=[next(filter(None, map(reasons.get, urls)), None) for urls in rows])


def is_url(name: str) -> bool:
    """Whether a medium is named by an http(s) or data URL, rather than by a local file."""
    return name.partition(":")[0].strip().lower() in ("http", "https", "data")


def placeholders(table: pa.Table) -> FilterResult:
    """Drop records whose texts do not have one placeholder per medium, of its kind and in order.

    The details say how many there are of which kind.

    Args:
        table: needs `turns` and `media`.
    """
    reasons: list[str | None] = []
    details: list[str | None] = []
    records = zip(table["turns"].to_pylist(), table["media"].to_pylist(), strict=True)
    for turns, media in records:
        found = [name for turn in turns for name in PLACEHOLDER_PATTERN.findall(turn["text"])]
        expected = [PLACEHOLDERS[ref["kind"]] for ref in media]
        reasons.append(None if found == expected else "placeholder_mismatch")
        details.append(None if found == expected else _mismatch(found, expected))
    return FilterResult(reasons=reasons, details=details)


def _mismatch(found: Sequence[str], expected: Sequence[str]) -> str:
    """What placeholders a record has, and for what media."""
    kinds = {kind: (found.count(name), expected.count(name)) for kind, name in PLACEHOLDERS.items()}
    wrong = [
        f"{there} {PLACEHOLDERS[kind]} in its texts for {wanted} of its media ({kind})"
        for kind, (there, wanted) in kinds.items()
        if there != wanted
    ]
    return "; ".join(wrong) or f"{' '.join(found)} in its texts for media in another order"


def in_splits(table: pa.Table, *, splits: Collection[str]) -> FilterResult:
    """Drop records of other splits of their data set; records without a split are kept.

    Args:
        table: needs `lineage`, with `split` where it is published.
        splits: the splits to keep.
    """
    found = [json.loads(text).get("split") for text in table["lineage"].to_pylist()]
    return FilterResult(
        reasons=[None if split is None or split in splits else "other_split" for split in found]
    )


def declared_duration(table: pa.Table, *, minimum: float, maximum: float) -> FilterResult:
    """Drop records whose published duration is out of bounds, before they cost a download.

    Allows a second more or less, since lists round; the medium itself is checked later.

    Args:
        table: needs `lineage`, with `duration` where it is published: seconds, or ISO 8601's
            PT…H…M…S as in WebVid.
        minimum: the minimum duration, in seconds.
        maximum: the maximum duration, in seconds.
    """
    reasons: list[str | None] = []
    for text in table["lineage"].to_pylist():
        seconds = _seconds(json.loads(text).get("duration", ""))
        if seconds is not None and seconds < minimum - 1:
            reasons.append("declared_too_short")
        elif seconds is not None and seconds > maximum + 1:
            reasons.append("declared_too_long")
        else:
            reasons.append(None)
    return FilterResult(reasons=reasons)


_ISO = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?")


def _seconds(text: str) -> float | None:
    """A published duration in seconds; None if the text is none."""
    found = _ISO.fullmatch(text)
    if found:
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return 3600 * hours + 60 * minutes + seconds
    try:
        return float(text)
    except ValueError:
        return None


def captioned_only(table: pa.Table, *, function: FilterFunction) -> FilterResult:
    """Apply a filter function to the rows that have a caption, and keep the others.

    Args:
        table: needs `caption` (string; null if there is none).
        function: returns no new columns.
    """
    has_caption = table["caption"].is_valid()
    result = function(table.filter(has_caption))
    reasons = iter(result.reasons)
    return FilterResult(
        reasons=[next(reasons) if present else None for present in has_caption.to_pylist()]
    )


def media_count(table: pa.Table, *, minimum: int, maximum: int) -> FilterResult:
    """Drop records with too few or too many media.

    Args:
        table: needs `media`.
        minimum: the minimum number of media.
        maximum: the maximum number of media.
    """
    counts = [len(media) for media in table["media"].to_pylist()]
    return FilterResult(
        reasons=[
            "too_few_media" if n < minimum else "too_many_media" if n > maximum else None
            for n in counts
        ]
    )
