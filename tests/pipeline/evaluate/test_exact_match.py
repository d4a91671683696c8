"""Exact match counts exact answers; chance is the most frequent answer of each kind."""

from pipeline.evaluate.exact_match import score_exact_match
from pipeline.evaluate.generate_answers import Prediction


def prediction(kind: str, truth: str, answer: str) -> Prediction:
    return Prediction(id="", kind=kind, question="", truth=truth, answer=answer)


def test_score() -> None:
    seeing = [
        prediction("digit", "3", "3"),
        prediction("digit", "3", "4"),
        prediction("digit", "5", "5"),
        prediction("colour", "red", " Red "),
    ]
    blind = [prediction(p.kind, p.truth, "3") for p in seeing]
    scores = score_exact_match(seeing, blind)
    assert (scores.accuracy, scores.blind, scores.chance) == (0.75, 0.5, 0.75)
    assert scores.kinds["digit"].accuracy == 2 / 3
    assert scores.kinds["colour"].chance == 1.0
