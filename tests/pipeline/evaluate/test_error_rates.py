"""Error rates: of normalised texts, over all answers together."""

import pytest

from pipeline.evaluate.error_rates import character_error_rate, normalise, word_error_rate


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("We travel to Paris, on Monday.", "we travel to paris on monday"),
        ("  It’s  the dogs' \n bowl_2 — ‘new’!", "it's the dogs bowl 2 new"),
        ("Ａ½ Straße", "a1 2 straße"),
        ("…", ""),
    ],
)
def test_normalise(text: str, normalised: str) -> None:
    assert normalise(text) == normalised


def test_rates_are_of_all_words_and_characters_together() -> None:
    truths = ["Turn off the oven.", "Paris"]
    # One substitution, one insertion and one deletion of five words.
    answers = ["turn on the oven now", ""]
    assert word_error_rate(truths, answers) == pytest.approx(3 / 5)
    assert word_error_rate(truths, ["TURN OFF THE OVEN", "paris!"]) == 0
    assert character_error_rate(["abc", "d"], ["abx", "d"]) == pytest.approx(1 / 4)


def test_without_a_true_word_every_word_is_an_error() -> None:
    assert word_error_rate(["…"], ["two words"]) == 2
    assert word_error_rate([""], [""]) == 0
