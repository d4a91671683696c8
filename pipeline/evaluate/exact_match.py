"""Scores of answers: exact match, blind baseline, chance and error rates, per kind of question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from pipeline.evaluate.caption_scores import CaptionScores
from pipeline.evaluate.error_rates import character_error_rate, word_error_rate
from pipeline.evaluate.generate_answers import Prediction


@dataclass(frozen=True, kw_only=True)
class Score:
    """Fractions of exact answers, and error rates.

    Args:
        questions: their number.
        accuracy: of the model.
        blind: of the same model without the media.
        chance: of answering each question with the most frequent true answer of its kind.
        word_error_rate: of the answers with media; see `error_rates.py`.
        character_error_rate: of the same answers.
    """

    questions: int
    accuracy: float
    blind: float
    chance: float
    word_error_rate: float
    character_error_rate: float


@dataclass(frozen=True, kw_only=True)
class Scores(Score):
    """The scores of all questions, and of each kind of question."""

    kinds: Mapping[str, Score]


def score_exact_match(seeing: Sequence[Prediction], blind: Sequence[Prediction]) -> Scores:
    """Score the answers of a model with its media (`seeing`) and without them (`blind`)."""
    kinds: dict[str, Score] = {}
    for kind in sorted({prediction.kind for prediction in seeing}):
        of_kind = [prediction for prediction in seeing if prediction.kind == kind]
        kinds[kind] = Score(
            questions=len(of_kind),
            accuracy=_accuracy(of_kind),
            blind=_accuracy([prediction for prediction in blind if prediction.kind == kind]),
            chance=Counter(p.truth for p in of_kind).most_common(1)[0][1] / len(of_kind),
            **_error_rates(of_kind),
        )
    return Scores(
        questions=len(seeing),
        accuracy=_accuracy(seeing),
        blind=_accuracy(blind),
        chance=sum(kind.chance * kind.questions for kind in kinds.values()) / len(seeing),
        **_error_rates(seeing),
        kinds=kinds,
    )


def _accuracy(predictions: Sequence[Prediction]) -> float:
    return sum(prediction.correct for prediction in predictions) / len(predictions)


def _error_rates(predictions: Sequence[Prediction]) -> dict[str, float]:
    truths, answers = [p.truth for p in predictions], [p.answer for p in predictions]
    return {
        "word_error_rate": word_error_rate(truths, answers),
        "character_error_rate": character_error_rate(truths, answers),
    }


def exact_match_table(scores: Scores) -> Table:
    """Return the scores as a table."""
    table = Table("kind", "questions", "accuracy", "blind", "chance", "WER", "CER")
    for kind, score in [*scores.kinds.items(), ("all", scores)]:
        rates = (score.word_error_rate, score.character_error_rate)
        fractions = (f"{x:.3f}" for x in (score.accuracy, score.blind, score.chance, *rates))
        table.add_row(kind or "–", str(score.questions), *fractions)
    return table


def captions_table(scores: CaptionScores) -> Table:
    """Return the scores of captions as a table."""
    table = Table("captioned", "references", "CIDEr-D", "BLEU-4", "ROUGE-L")
    numbers = (f"{x:.3f}" for x in (scores.cider_d, scores.bleu_4, scores.rouge_l))
    table.add_row(str(scores.images), str(scores.references), *numbers)
    return table
