"""Word and character error rates, for answers that are transcripts.

Both texts are normalised first: NFKC, lower case, punctuation and symbols removed except
apostrophes inside words, and one space between words. The rate is of all answers together: edits
(substitutions, deletions, insertions) divided by the words, or characters, of the true answers. It
may exceed 1.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import jiwer

_NOT_WORDS = re.compile(r"(?<!\w)'|'(?!\w)|[^\w\s']|_")


def normalise(text: str) -> str:
    """Return a text as error rates compare it."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'").lower()
    return " ".join(_NOT_WORDS.sub(" ", text).split())


def word_error_rate(truths: Sequence[str], answers: Sequence[str]) -> float:
    """Return the word error rate of answers; without any true word, the number of their words."""
    return float(jiwer.wer(list(map(normalise, truths)), list(map(normalise, answers))))


def character_error_rate(truths: Sequence[str], answers: Sequence[str]) -> float:
    """Return the character error rate of answers, spaces included."""
    return float(jiwer.cer(list(map(normalise, truths)), list(map(normalise, answers))))
