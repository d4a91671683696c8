"""Caption scores equal those of the official script, recorded with its tokenizer in Java."""

import json
from pathlib import Path
from statistics import fmean

import pytest

from pipeline.evaluate.caption_scores import (
    bleu,
    caption_words,
    cider_d,
    rouge_l,
    score_captions,
)

OFFICIAL = json.loads((Path(__file__).parent / "recorded" / "captions.json").read_bytes())
CANDIDATES = [caption_words(one["caption"]) for one in OFFICIAL["captions"]]
REFERENCES = [[caption_words(text) for text in one["references"]] for one in OFFICIAL["captions"]]


@pytest.mark.parametrize(("text", "tokens"), OFFICIAL["tokens"])
def test_tokens_are_those_of_the_official_tokenizer(text: str, tokens: str) -> None:
    assert " ".join(caption_words(text)) == tokens


def test_scores_are_those_of_the_official_script() -> None:
    assert bleu(CANDIDATES, REFERENCES) == pytest.approx(OFFICIAL["bleu"], rel=1e-9)
    scores = cider_d(CANDIDATES, REFERENCES)
    assert scores == pytest.approx(OFFICIAL["cider_d_each"], rel=1e-9)
    assert fmean(scores) == pytest.approx(OFFICIAL["cider_d"], rel=1e-9)
    each = [rouge_l(words, own) for words, own in zip(CANDIDATES, REFERENCES, strict=True)]
    assert each == pytest.approx(OFFICIAL["rouge_l_each"], rel=1e-9)


def test_a_picture_with_several_captions_is_one_item_with_several_references() -> None:
    texts = [
        (str(number), one["caption"], text)
        for number, one in enumerate(OFFICIAL["captions"])
        for text in one["references"]
    ]
    scores = score_captions(texts)
    assert (scores.images, scores.references) == (12, len(texts))
    assert scores.cider_d == pytest.approx(OFFICIAL["cider_d"], rel=1e-9)
    assert scores.bleu_4 == pytest.approx(OFFICIAL["bleu"][3], rel=1e-9)
    assert scores.rouge_l == pytest.approx(OFFICIAL["rouge_l"], rel=1e-9)
    assert score_captions(reversed(texts)) == scores


def test_of_a_single_picture_or_an_empty_caption_there_is_no_agreement() -> None:
    words = [["a", "red", "bus"]]
    assert cider_d(words, [[["a", "red", "bus"]]]) == [0.0]
    assert rouge_l([], [["a"]]) == 0.0
    assert bleu([[]], [[["a"]]])[3] == pytest.approx(0.0, abs=1e-9)
