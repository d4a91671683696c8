"""Soft accuracy over ten human answers, and the normalisation of answers before they are compared.

The protocol is that of VQA (Antol et al. 2015, section 3.3): leaving out each human answer in turn,
an answer counts min(1, matches / 3). Official scripts differ in what they normalise:

- VQAv2 and OKVQA (GT-Vision-Lab/VQA, `vqaEvaluation/vqaEval.py`): both sides, but nothing where all
  people gave the same answer.
- TextVQA (MMF's `EvalAIAnswerProcessor`, as in LLaVA's `m4c_evaluator.py`): both sides, always,
  after removing commas and question marks and splitting off "'s".
- VizWiz (its challenge's `vqaEval.py`): the prediction alone; its contractions have a typographic
  apostrophe, so that "dont" becomes "don’t".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = 32
"""The official scripts pass `re.UNICODE`, which is 32, where `re.sub` expects a count."""
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
_CONTRACTED = (  # noqa: SIM905 - a list of words reads better as one text
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've"
    " hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't"
    " mightn't've might've mustn't must've needn't not've o'clock oughtn't shan't she'd've"
    " should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've"
    " someone'll someone's something'd something'd've something'll that's"
    " there'd there'd've there're there's"
    " they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're"
    " what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll"
    " why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've"
    " you'll you're you've"
).split()
_ODD = {"somebody'd": "somebodyd", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at"}
_ODD |= {"'ow'sat": "'ow's'at"}


def _contractions() -> dict[str, str]:
    """Return written form → contraction: the one apostrophe left out, or either one of two."""
    found = dict(_ODD)
    for word in _CONTRACTED:
        marks = [place for place, letter in enumerate(word) if letter == "'"]
        if len(marks) > 2:  # y'all'd've: any one of three
            found |= {word[:place] + word[place + 1 :]: word for place in marks}
        elif word == "y'all'll":
            found |= {"yall'll": word, "y'allll": word}
        else:
            found |= {word[:place] + word[place + 1 :]: word for place in marks}
    return found


CONTRACTIONS = _contractions()
_STRAIGHT = ("aint", "arent", "cant", "couldve", "couldnt", "weve", "wheres", "whove")
_STRAIGHT_KEYS = ("couldn'tve", "hadn'tve")
VIZWIZ_CONTRACTIONS = {
    (key if key in _STRAIGHT_KEYS else key.replace("'", "’")): (
        word if key in _STRAIGHT else word.replace("'", "’")
    )
    for key, word in CONTRACTIONS.items()
}
"""As in the challenge's script: typographic apostrophes but for a few words."""


def normalise(answer: str, contractions: Mapping[str, str] = CONTRACTIONS) -> str:
    """Return an answer without punctuation and articles, in lower case, with digits for numbers."""
    return _words(_without_punctuation(answer), contractions)


def _without_punctuation(text: str) -> str:
    # A mark vanishes where a space is next to one, or where a number has a comma anywhere; else it
    # becomes a space.
    vanishes = bool(_COMMA_IN_NUMBER.search(text))
    result = text
    for mark in _PUNCTUATION:
        gone = vanishes or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if gone else " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)


def _words(text: str, contractions: Mapping[str, str]) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(contractions.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalise_textvqa(answer: str) -> str:
    """Return an answer as TextVQA compares it."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise(_one_line(text))


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Return the accuracy of an answer to a question of VQAv2 or OKVQA, from 0 to 1."""
    given, truths = _one_line(answer), [_one_line(truth) for truth in truths]
    if len(set(truths)) > 1:
        given, truths = normalise(given), [normalise(truth) for truth in truths]
    return soft_accuracy(given, truths)


def textvqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Return the accuracy of an answer to a question of TextVQA, from 0 to 1."""
    return soft_accuracy(normalise_textvqa(answer), [normalise_textvqa(truth) for truth in truths])


def vizwiz_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Return the accuracy of an answer to a question of VizWiz, from 0 to 1."""
    return soft_accuracy(normalise(_one_line(answer), VIZWIZ_CONTRACTIONS), truths)


def soft_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Return the mean over left-out truths of min(1, matching others / 3); 0 without truths."""
    if not truths:
        return 0.0
    matches = sum(truth == answer for truth in truths)
    left_out = [min(1.0, (matches - (truth == answer)) / 3) for truth in truths]
    return sum(left_out) / len(left_out)


Accuracy = Callable[[str, Sequence[str]], float]
