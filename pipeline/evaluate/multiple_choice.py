"""Which option an answer chooses, as the official scripts of multiple-choice benchmarks read it.

- ScienceQA as LLaVA scores it (haotian-liu/LLaVA, `eval_science_qa.py`): the letter alone, a letter
  followed by ". ", or one "The answer is X.".
- MMBench (open-compass/VLMEvalKit, `matching_util.py: can_infer`, without a language model that
  matches the rest): one letter among the words, or the text of one option.
- SEED-Bench: the letter itself (LLaVA's `convert_seed_for_submission.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.evaluate.benchmark import LETTERS

_SCIENCEQA_LETTERS = "ABCDE"
_SCIENCEQA = re.compile(r"The answer is ([A-Z]).")
_IS_LETTER = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")
_NO_WORDS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_API_FAILED = "Failed to obtain answer via API"
_LAST_WORDS = 5
NONE = "Z"
"""VLMEvalKit's letter of an answer that chooses none of the options."""


def scienceqa_letter(answer: str) -> str:
    """Return the letter that an answer to a question of ScienceQA gives, or an empty text."""
    if answer and answer in _SCIENCEQA_LETTERS and len(answer) == 1:
        return answer
    if len(answer) >= 3 and answer[0] in _SCIENCEQA_LETTERS and answer[1:3] == ". ":
        return answer[0]
    found: list[str] = _SCIENCEQA.findall(answer)
    return found[0] if len(found) == 1 else ""


def mmbench_letter(answer: str, options: Mapping[str, str]) -> str:
    """Return the letter that an answer gives, `NONE` if it refuses, or an empty text.

    Args:
        answer: to read.
        options: letter → text.
    """
    return _letter_word(answer, options) or _option_text(answer, options)


def _letter_word(answer: str, options: Mapping[str, str]) -> str:
    if _API_FAILED in answer:
        return ""
    if any(refusal in answer for refusal in _REFUSALS):
        return NONE
    words = answer.translate(_NO_WORDS).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - _LAST_WORDS:
        return letters[0]
    if not letters and NONE in words:
        return NONE
    match = _IS_LETTER.search(answer)
    return match[1].upper() if match and match[1].upper() in options else ""


def _option_text(answer: str, options: Mapping[str, str]) -> str:
    answer = answer.lower()
    texts = {letter: text.lower() for letter, text in options.items()}
    if len(answer) > 2 * sum(map(len, texts.values())):
        return ""
    found = [letter for letter, text in texts.items() if text in answer]
    return found[0] if len(found) == 1 else ""


def lettered_options(options: tuple[str, ...]) -> dict[str, str]:
    """Return letter → text."""
    return dict(zip(LETTERS, options, strict=False))
