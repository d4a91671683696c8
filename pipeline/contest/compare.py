"""Paired comparison of the runs of a contest: the same steps, and answers to the same questions.

The losses of neighbouring steps are correlated, since they are of nearly the same weights: blocks
of about n^⅓ consecutive steps are resampled together (Künsch 1989, *The jackknife and the bootstrap
for general stationary observations*; the length after Hall, Horowitz and Jing 1995).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.cli import UserError
from pipeline.evaluate.metrics import Metrics, differences, mean_metric, values
from pipeline.run_folder.evaluation import EVALUATION
from pipeline.run_folder.metrics_writer import read_metrics
from pipeline.run_folder.starts import read_starts

log = logging.getLogger(__name__)

_LEAST_UNITS = 5
_LAST = 4
"""The last quarter of the steps is compared, too: what a variant has come to."""
ALL_STEPS, LAST_STEPS, ANSWERS = "all steps", "last quarter of steps", "questions"
EXACT = "exact answers"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a variant has come to.

    Args:
        name: of the variant.
        settings: what it changes.
        run: its run folder.
        steps, samples: that it was trained on.
        trainable, parameters: how many are trainable, and how many there are.
        step_seconds: mean.
        scores: mean losses over all and over the last steps, and the share of exact answers.
        blind: the share of exact answers without media; None without questions.
    """

    name: str
    settings: Sequence[str]
    run: str
    steps: int
    samples: int
    trainable: int
    parameters: int
    step_seconds: float
    scores: Mapping[str, Mapping[str, float]]
    blind: float | None


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A score of a variant minus that of another one, of the same steps or questions.

    Args:
        variant, against: the names of both.
        of: the steps or questions.
        score: a loss, or exact answers.
        value: the difference.
        low, high: its 95 % bootstrap interval.
        p_value: two-sided, of no difference.
    """

    variant: str
    against: str
    of: str
    score: str
    value: float
    low: float
    high: float
    p_value: float


def read_scores(run: Path, *, answered: bool) -> Metrics:
    """Return the scores of a run that can be resampled.

    Args:
        run: the run folder.
        answered: whether it has answered questions.
    """
    entries = read_metrics(run)
    scores = {
        ALL_STEPS: _losses(entries),
        LAST_STEPS: _losses(entries[-max(1, len(entries) // _LAST) :]),
    }
    if answered:
        lines = _predictions(run)
        points = [float(line["correct"]) for line in lines]
        scores[ANSWERS] = {EXACT: mean_metric(points, [line["id"] for line in lines])}
    return scores


def _losses(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    block = max(1, round(len(entries) ** (1 / 3)))
    units = [str(number // block) for number in range(len(entries))]
    names = list(entries[0]["losses"])
    return {
        name: mean_metric([entry["losses"][name] for entry in entries], units) for name in names
    }


def _predictions(run: Path, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    lines = (run / EVALUATION / name).read_text().splitlines()
    return [json.loads(line) for line in lines]


def read_result(name: str, settings: Sequence[str], run: Path, scores: Metrics) -> Result:
    """Return what a variant has come to, from the files of its run."""
    metrics = read_metrics(run)
    trainable, parameters = read_starts(run)[-1]["parameters"]
    blind = None
    if ANSWERS in scores:
        answers = _predictions(run, "predictions_blind.jsonl")
        blind = sum(answer["correct"] for answer in answers) / max(1, len(answers))
    return Result(
        name=name,
        settings=settings,
        run=str(run),
        steps=metrics[-1]["step"],
        samples=metrics[-1]["samples"],
        trainable=trainable,
        parameters=parameters,
        step_seconds=sum(entry["step_seconds"] for entry in metrics) / len(metrics),
        scores=values(scores),
        blind=blind,
    )


def _are_enough(of: str, units: Sequence[str]) -> bool:
    """Return whether so many units give an interval: of a few, resamples are all alike."""
    count = len(set(units))
    if count < _LEAST_UNITS:
        log.warning("%s: too few for an interval (%d blocks or questions)", of, count)
    return count >= _LEAST_UNITS


def compare(
    results: Sequence[Result], scores: Sequence[Metrics], *, resamples: int
) -> list[PairedDifference]:
    """Return the paired differences of each variant and the first one.

    Scores of too few steps or questions for an interval are left out, with a warning.

    Raises:
        UserError: they were not trained on equally many samples, or have answered different
            questions.
    """
    base, *others = results
    found = []
    for one, theirs in zip(others, scores[1:], strict=True):
        if (one.steps, one.samples) != (base.steps, base.samples):
            raise UserError(
                f"{one.run}: {one.samples} samples in {one.steps} steps, {base.run} has "
                f"{base.samples} in {base.steps}; bad_samples.jsonl of both says which were skipped"
            )
        shared = {
            of: {
                name: metric
                for name, metric in named.items()
                if name in scores[0].get(of, {}) and _are_enough(of, metric.units)
            }
            for of, named in theirs.items()
        }
        for of, named in differences(shared, scores[0], resamples=resamples).items():
            for score, each in named.items():
                found.append(
                    PairedDifference(
                        variant=one.name, against=base.name, of=of, score=score, **vars(each)
                    )
                )
    return found
