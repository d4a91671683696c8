"""Operations on whole records, before their media are there."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

import pyarrow as pa

from etl.filters.base import Operation, Verdict
from etl.filters.urls import check_urls
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
"""A record's media, as readers name them: where each is, and which cut of it."""


def well_formed(table: pa.Table) -> Verdict:
    """Drop rows that their reader could not use, and those that say nothing.

    Args:
        table: needs `fault` (string; null is none) and `turns`.
    """
    faults = table["fault"].to_pylist()
    turns = table["turns"].to_pylist()
    reasons = [
        "bad_record" if fault else None if said else "no_turns"
        for fault, said in zip(faults, turns, strict=True)
    ]
    return Verdict(reasons=reasons, details=faults)


def check_media_urls(table: pa.Table, *, allow_private: bool, names: bool) -> Verdict:
    """Drop records one of whose media has a URL that cannot be asked for; `check_urls` says which.

    Args:
        table: needs `media`; a record without any is kept.
        allow_private: keep private and loopback addresses.
        names: whether there are files that something else than a URL may name; without them it
            is dropped as `no_media`.
    """
    rows = [[ref["url"] for ref in media] for media in table["media"].to_pylist()]
    distinct = {url for urls in rows for url in urls if not url.startswith("data:")}
    faults: dict[str, str | None] = dict.fromkeys(distinct, None if names else "no_media")
    asked = [url for url in distinct if "://" in url]
    verdict = check_urls(pa.table({"url": pa.array(asked)}), allow_private=allow_private)
    faults.update(zip(asked, verdict.reasons, strict=True))
    return Verdict(reasons=[next(filter(None, map(faults.get, urls)), None) for urls in rows])


def is_url(name: str) -> bool:
    """Whether a medium is on the web or in a data URL, and not among local files."""
    return name.partition(":")[0].lower() in ("http", "https", "data")


def placeholders(table: pa.Table) -> Verdict:
    """Drop records whose texts do not hold one placeholder per medium, of its kind and in order.

    Args:
        table: needs `turns` and `media`.
    """
    reasons: list[str | None] = []
    both = zip(table["turns"].to_pylist(), table["media"].to_pylist(), strict=True)
    for turns, media in both:
        found = [name for turn in turns for name in PLACEHOLDER_PATTERN.findall(turn["text"])]
        wanted = [PLACEHOLDERS[ref["kind"]] for ref in media]
        reasons.append(None if found == wanted else "placeholder_mismatch")
    return Verdict(reasons=reasons)


def in_splits(table: pa.Table, *, splits: Collection[str]) -> Verdict:
    """Drop records of other splits of their data set; those of none are kept.

    Args:
        table: needs `lineage`, with `split` where there are any.
        splits: to be kept.
    """
    found = [json.loads(text).get("split") for text in table["lineage"].to_pylist()]
    return Verdict(
        reasons=[None if split is None or split in splits else "other_split" for split in found]
    )


def declared_duration(table: pa.Table, *, minimum: float, maximum: float) -> Verdict:
    """Drop records whose published duration is out of bounds, before they cost a download.

    A second more or less is let through, since lists round; the medium itself is judged later.

    Args:
        table: needs `lineage`, with `duration` where it is published: seconds, or ISO 8601's
            PT…H…M…S as WebVid has it.
        minimum: the least that is kept, in seconds.
        maximum: the most that is kept.
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
    return Verdict(reasons=reasons)


_ISO = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?")


def _seconds(text: str) -> float | None:
    """A published duration; None if it is none."""
    found = _ISO.fullmatch(text)
    if found:
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return 3600 * hours + 60 * minutes + seconds
    try:
        return float(text)
    except ValueError:
        return None


def pairs_only(table: pa.Table, *, operation: Operation) -> Verdict:
    """Let an operation judge the rows that have a caption, and keep the others.

    Args:
        table: needs `caption` (string; null is none).
        operation: gives no new columns.
    """
    has = table["caption"].is_valid().to_pylist()
    verdict = operation(table.filter(table["caption"].is_valid()))
    judged = iter(verdict.reasons)
    return Verdict(reasons=[next(judged) if one else None for one in has])


def media_count(table: pa.Table, *, minimum: int, maximum: int) -> Verdict:
    """Drop records of fewer or more media than the bounds.

    Args:
        table: needs `media`.
        minimum: the fewest that are kept.
        maximum: the most that are kept.
    """
    counts = [len(media) for media in table["media"].to_pylist()]
    return Verdict(
        reasons=[
            "too_few_media" if n < minimum else "too_many_media" if n > maximum else None
            for n in counts
        ]
    )
