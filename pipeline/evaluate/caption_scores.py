"""CIDEr-D, BLEU and ROUGE-L of captions, after the official COCO caption evaluation.

The scorers are those of github.com/tylin/coco-caption (Chen et al. 2015, *Microsoft COCO Captions*,
arXiv:1504.00325, §3), without its METEOR and SPICE, which are programs in Java. Its tokenizer, the
Penn Treebank tokenizer of Stanford CoreNLP, is one, too; `caption_words` does the same for captions
in Latin script as far as the tests compare them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

Ngrams = Counter[tuple[str, ...]]
Words = Sequence[str]

_LONGEST = 4
"""Words of the longest n-grams."""
_SIGMA = 6.0
"""Of CIDEr-D's Gaussian penalty on the difference of lengths (Vedantam et al. 2015, §6)."""
_BETA = 1.2
"""Weight of recall in ROUGE-L, as the official script has it."""

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PUNCTUATION = frozenset(["'", "``", "`", "''", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "y'all": ("y'", "all"),
}
_ABBREVIATIONS = "mr|mrs|ms|dr|st|jr|sr|no|vs|inc|ltd|co|mt|ave|blvd|sgt|lt|gen|prof|rev"
_TOKEN = re.compile(
    rf"""
    n't\b
    | '(?:s|m|d|ll|re|ve)(?![a-z])               # of a contraction
    | (?:[a-z]\.){{2,}}                          # a.m., u.s.
    | etc\. | (?:{_ABBREVIATIONS})\.(?=\s+\S)  # others not at the end of a caption
    | '(?:\d\ds|n'|til\b|em\b|cause\b)           # '90s, rock 'n' roll
    | o'clock\b | d'you\b | y'all\b
    | (?:\w+?(?=n't\b)|\w+(?:[.,:]\w+)*)         # with decimals and times
      (?:[-/](?:\w+?(?=n't\b)|\w+(?:[.,:]\w+)*))*
    | \.\.\. | --
    | \S
    """,
    re.VERBOSE,
)
_AS_ASCII = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "£": "#", "€": "$"}
)


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """The scores of captions, as the official script prints them.

    Args:
        images: what is captioned, of any kind of media.
        references: their true captions.
        cider_d: from 0 to 10; papers multiply it by 100.
        bleu_4: of the corpus, from 0 to 1.
        rouge_l: from 0 to 1.
    """

    images: int
    references: int
    cider_d: float
    bleu_4: float
    rouge_l: float


def score_captions(answers: Iterable[tuple[str, str, str]]) -> CaptionScores:
    """Score captions, in whatever order they come.

    Args:
        answers: the identity of the medium, the model's caption, and a true one; a medium with
            several true captions comes with each, and its caption is the same.
    """
    captions: dict[str, str] = {}
    references: dict[str, list[str]] = {}
    for medium, answer, truth in sorted(answers):
        captions.setdefault(medium, answer)
        references.setdefault(medium, []).append(truth)
    candidate_words = [caption_words(text) for text in captions.values()]
    reference_words = [[caption_words(text) for text in own] for own in references.values()]
    return CaptionScores(
        images=len(captions),
        references=sum(map(len, reference_words)),
        cider_d=fmean(cider_d(candidate_words, reference_words)),
        bleu_4=bleu(candidate_words, reference_words)[-1],
        rouge_l=fmean(map(rouge_l, candidate_words, reference_words)),
    )


def caption_words(text: str) -> list[str]:
    """Return a caption's tokens in lower case, without punctuation, as the official script does."""
    words: list[str] = []
    for token in _TOKEN.findall(text.lower().translate(_AS_ASCII)):
        if token == '"' or token in _PUNCTUATION:
            continue
        words += _SPLIT_WORDS.get(token, (_BRACKETS.get(token, token),))
    return words


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Return BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002), by the closest reference length.

    Args:
        candidates: the tokens of each caption.
        references: the tokens of each caption's references.
    """
    matches, guesses = [0] * _LONGEST, [0] * _LONGEST
    length = closest = 0
    for words, own in zip(candidates, references, strict=True):
        length += len(words)
        closest += min((abs(len(one) - len(words)), len(one)) for one in own)[1]
        most: Ngrams = Counter()
        for one in own:
            most |= _ngrams(one)
        for ngram, count in _ngrams(words).items():
            matches[len(ngram) - 1] += min(count, most[ngram])
        for n in range(_LONGEST):
            guesses[n] += max(0, len(words) - n)
    tiny, small = 1e-15, 1e-9  # in place of a division by zero
    ratio = (length + tiny) / (closest + small)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(_LONGEST):
        product *= (matches[n] + tiny) / (guesses[n] + small)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores


def rouge_l(words: Words, references: Sequence[Words]) -> float:
    """Return ROUGE-L of a caption (Lin 2004), by the best precision and recall of any reference."""
    common = [_longest_common_subsequence(words, one) for one in references]
    precision = max(count / max(1, len(words)) for count in common)
    recall = max(count / max(1, len(one)) for count, one in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Return CIDEr-D of each caption (Vedantam et al. 2015, arXiv:1411.5726, §6), from 0 to 10.

    Document frequencies are those of the given references. The score of a single image is 0: each
    of its n-grams is in all images.

    Args:
        candidates: the tokens of each caption.
        references: the tokens of each caption's references.
    """
    documents: Ngrams = Counter()
    for own in references:
        documents.update({ngram for one in own for ngram in _ngrams(one)})
    images = math.log(len(references))
    scores = []
    for words, own in zip(candidates, references, strict=True):
        vectors = _weighted(_ngrams(words), documents, images)
        similarity = 0.0
        for one in own:
            other = _weighted(_ngrams(one), documents, images)
            # As in the official script, the length is the number of bigrams.
            difference = max(0, len(words) - 1) - max(0, len(one) - 1)
            penalty = math.exp(-(difference**2) / (2 * _SIGMA**2))
            similarity += penalty * sum(map(_clipped_cosine, vectors, other)) / _LONGEST
        scores.append(10 * similarity / len(own))
    return scores


def _ngrams(words: Words) -> Ngrams:
    """Return how often each n-gram of 1 to 4 words occurs."""
    return Counter(
        tuple(words[first : first + n])
        for n in range(1, _LONGEST + 1)
        for first in range(len(words) - n + 1)
    )


def _weighted(
    ngrams: Ngrams, documents: Ngrams, images: float
) -> list[dict[tuple[str, ...], float]]:
    """Return the tf-idf vector of the n-grams of each length."""
    vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
    for ngram, count in ngrams.items():
        weight = images - math.log(max(1, documents[ngram]))
        vectors[len(ngram) - 1][ngram] = count * weight
    return vectors


def _clipped_cosine(
    vector: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]
) -> float:
    """Return the cosine, with the candidate's weights clipped at the reference's."""
    norms = math.sqrt(sum(x * x for x in vector.values()) * sum(x * x for x in other.values()))
    if not norms:
        return 0.0
    shared = vector.keys() & other.keys()
    return sum(min(vector[ngram], other[ngram]) * other[ngram] for ngram in sorted(shared)) / norms


def _longest_common_subsequence(words: Words, other: Words) -> int:
    lengths = [0] * (len(other) + 1)
    for word in words:
        row = [0]
        for (diagonal, above), own in zip(pairwise(lengths), other, strict=True):
            row.append(diagonal + 1 if word == own else max(row[-1], above))
        lengths = row
    return lengths[-1]
