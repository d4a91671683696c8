"""A hint for a job that kept no row: which option is the likely cause."""

from __future__ import annotations

import re
from collections.abc import Mapping

from etl.storage.manifest import Manifest

_PRIVATE = "if the mirror is yours, give --allow-private-addresses"
_TRANSIENT = "repeat the command with --retry-failed"
_LENGTH = "lower --min-seconds"
_SHORTER = "raise --max-seconds"
_FORMAT = "check --format"
_SERVER = "check the list's URLs, and the network or proxy"

_HINTS: Mapping[str, str] = {
    "no_media": "records name files, so give --media with the folder or archive that holds them",
    "not_in_media": "--media holds none of the named files; give the folder or archive that does",
    "ambiguous_name": "several files in --media have the same name; give a more specific folder",
    "private_address": _PRIVATE,
    "bad_record": _FORMAT,
    "no_turns": _FORMAT,
    "no_answer": _FORMAT,
    "placeholder_mismatch": _FORMAT,
    "no_url": "the list has no URLs; check --input",
    "bad_url": "the list's URLs are not http(s); local files need --media",
    "other_split": "change --splits",
    "language": "change --languages, or lower --min-language-confidence",
    "caption_too_short": "lower --min-caption",
    "caption_too_long": "raise --max-caption",
    "caption_too_few_words": "lower --min-words",
    "caption_too_many_words": "raise --max-words",
    "declared_too_small": "lower --min-side",
    "too_small": "lower --min-side",
    "declared_aspect_too_large": "raise --max-aspect",
    "aspect_too_large": "raise --max-aspect",
    "decompression_bomb": "raise --max-pixels",
    "declared_too_short": _LENGTH,
    "too_short": _LENGTH,
    "declared_too_long": _SHORTER,
    "too_long": _SHORTER,
    "silent": "lower --min-level",
    "no_motion": "lower --min-motion",
    "too_few_frames": "lower --min-frames",
    "too_many_frames": "raise --max-frames",
    "too_few_points": "lower --min-points",
    "too_many_points": "raise --max-points",
    "too_few_media": "lower --min-similarity",
    "too_many_media": "raise --max-images",
    "no_boxes": "--blur-faces names a column without boxes",
    "bad_boxes": "--blur-faces names a column of other numbers than boxes",
    "eval_image": "--decontaminate names the corpus itself?",
    "eval_text": "--decontaminate names the corpus itself?",
    "body_too_large": "raise --max-bytes",
    "timeout": f"{_TRANSIENT} and a larger --timeout",
    "dns_temporary": f"check the network, then {_TRANSIENT}",
    "dns_failure": _SERVER,
    "unreachable": _SERVER,
    "http_404": _SERVER,
    "robots_unavailable": f"{_TRANSIENT} later",
    "robots_disallowed": "the servers' robots.txt forbids it; --no-robots-txt ignores that",
}
"""Drop reason → what to change."""

_IN_NO_PLAN = ("input", "timeout", "retry_failed")
"""Options that are not part of a job's plan."""

_SCORE_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "laion": {
        "similarity_too_low": "lower --min-similarity",
        "punsafe_too_high": "raise --max-punsafe",
        "pwatermark_too_high": "raise --max-pwatermark",
    }
}
"""Job → the drop reasons of scores that have an option of their own."""


def hint_for(manifest: Manifest) -> str | None:
    """One line for a job whose rows were all dropped: the main reason and the likely option.

    Returns:
        None if rows were kept, or if there were none to begin with.
    """
    if manifest.rows or not manifest.drops:
        return None
    reason, count = min(manifest.drops.items(), key=lambda entry: (-entry[1], entry[0]))
    advice = _advice(manifest.job, reason)
    options = {name.replace("-", "_") for name in re.findall(r"--(?:no-)?([a-z-]+)", advice)}
    if not options <= {*manifest.plan.get("config", ()), *_IN_NO_PLAN}:
        advice = "see the examples in report.html"  # this job has no such option
    return f"no row was kept; {count} of {manifest.input_rows} were dropped as {reason}: {advice}"


def _advice(job: str, reason: str) -> str:
    found = _SCORE_OPTIONS.get(job, {}).get(reason) or _HINTS.get(reason)
    if found:
        return found
    score, bound, _ = reason.rpartition("_too_")
    if not bound:
        return "see the examples in report.html"
    if score == "clip" and job != "refilter":
        return "lower --min-clip"
    return f"lower --minimum {score}=…" if reason.endswith("low") else f"raise --maximum {score}=…"
