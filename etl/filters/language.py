"""The language of a caption, published or detected.

Detected by py3langid (BSD-3-Clause, model included, 139 languages, pure numpy): 0.75 s and 105 MB
to load, then 54 µs a caption on one core. Captions are short, so its confidence matters: "a
lighthouse on a cliff" is English with 0.90, a lone "photo" has no language above 0.05.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from etl.cli import UserError
from etl.filters.base import FilterResult

UNDETERMINED = "und"
"""ISO 639-2's code of a text whose language is unclear; LAION-5B has a billion of them as a
separate set, "nolang" (arXiv:2210.08402)."""


def in_languages(
    table: pa.Table, *, languages: Sequence[str], min_confidence: float
) -> FilterResult:
    """Drop captions in other languages than these.

    A language that the list publishes is trusted if py3langid knows it.

    Args:
        table: needs `caption` (string; rows without one are kept) and `lineage`.
        languages: ISO 639 codes, and `und` for captions whose language is unclear.
        min_confidence: the confidence (0 to 1) below which a language counts as unclear.

    Returns:
        New columns `language` and, for detected languages, `score.language_confidence`.
    """
    known = known_languages()
    found: list[str | None] = []
    scores: list[float | None] = []
    reasons: list[str | None] = []
    rows = zip(table["caption"].to_pylist(), table["lineage"].to_pylist(), strict=True)
    for caption, lineage in rows:
        language = published_language(json.loads(lineage), known)
        confidence = None
        if caption is not None and not language:
            language, confidence = detect(caption, min_confidence)
        found.append(language)
        scores.append(confidence)
        reasons.append("language" if language and language not in languages else None)
    columns = {
        "language": pa.array(found, pa.string()),
        "score.language_confidence": pa.array(scores, pa.float32()),
    }
    return FilterResult(reasons=reasons, details=found, columns=columns)


def published_language(lineage: dict[str, str], known: frozenset[str]) -> str | None:
    """The language that a record's lineage publishes; `zh-Latn` counts as `zh`."""
    language = lineage.get("language", "").partition("-")[0].lower()
    return language if language in known else None


def detect(text: str, min_confidence: float) -> tuple[str, float]:
    """A text's language and the confidence; `und` if that is below `min_confidence`."""
    language, confidence = _identifier().classify(text)
    return (language if confidence >= min_confidence else UNDETERMINED), confidence


def check_languages(languages: Iterable[str]) -> None:
    """Raise UserError unless all are known codes."""
    known = known_languages()
    for language in languages:
        if language not in known:
            close = difflib.get_close_matches(language, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(
                f"--languages {language}: want codes of ISO 639 such as en or zh, or und{hint}"
            )


@functools.cache
def known_languages() -> frozenset[str]:
    """All codes that can be detected, and `und`."""
    return frozenset([*_identifier().labels, UNDETERMINED])


@functools.cache
def _identifier() -> Any:  # noqa: ANN401 - an untyped library's
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
