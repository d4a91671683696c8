"""Scores of answers: exact ones, wrong-medium ones, and what is owed to the medium."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.storage.shards import ShardSet

STARTS: Mapping[str, str] = {"dress": "sft", "dpo": "sft", "grpo": "dpo"}
"""Run of RLHF → the run that it goes on from.

GRPO goes on from DPO, as in Tülu 3 (Lambert et al. 2024, arXiv:2411.15124, §6): it can only raise
what the policy already answers now and then, and after SFT on single things that is not "two".
"""
DENIAL = "no"
"""The true answer to all questions about what is not there, and to no others."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answers to one question: with its medium, and without (`blind`)."""

    id: str
    medium: str
    kind: str
    question: str
    truth: str
    answer: str
    blind: str

    @property
    def about_absent(self) -> bool:
        """Whether the question is about what is not there."""
        return self.truth == DENIAL

    @property
    def correct(self) -> bool:
        """Whether the answer with the medium is exact, as `evaluate` counts it."""
        return _same(self.answer, self.truth)

    @property
    def wrong_medium(self) -> bool:
        """Whether what is not there is spoken of as if it was: with anything but a denial."""
        return self.about_absent and not self.correct


def _same(answer: str, truth: str) -> bool:
    return answer.strip().lower() == truth.strip().lower()


def read_media(questions: Path) -> dict[str, str]:
    """Return the kind of medium of each question of a data folder, by id."""
    shards = ShardSet([questions])
    rows = (shards[row] for row in range(len(shards)))
    return {sample.id: sample.media[0].kind for sample in rows}


def read_answers(evaluation: Path, media: Mapping[str, str]) -> list[Answer]:
    """Return the answers of an evaluation.

    Args:
        evaluation: its folder.
        media: as of `read_media`.
    """
    seeing, blind = (
        [json.loads(line) for line in (evaluation / name).read_text().splitlines()]
        for name in ("predictions.jsonl", "predictions_blind.jsonl")
    )
    return [
        Answer(
            medium=media[one["id"]],
            blind=other["answer"],
            **{name: one[name] for name in ("id", "kind", "question", "truth", "answer")},
        )
        for one, other in zip(seeing, blind, strict=True)
    ]


def score(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the figures of a model.

    Returns:
        `held_out`, the share of exact answers to questions about what is there; `wrong_medium`, the
        share of questions about what is not that are answered as if it was; `media`, by kind of
        medium the exact answers to the former with the medium and `blind`, without it; `kinds`, by
        medium and kind of question the share of exact answers.
    """
    present = [one for one in answers if not one.about_absent]
    absent = [one for one in answers if one.about_absent]
    media = {}
    for medium in sorted({one.medium for one in present}):
        own = [one for one in present if one.medium == medium]
        media[medium] = {
            "seeing": _share(one.correct for one in own),
            "blind": _share(_same(one.blind, one.truth) for one in own),
        }
    kinds = sorted({(one.medium, one.kind) for one in answers})
    return {
        "held_out": _share(one.correct for one in present),
        "wrong_medium": _share(one.wrong_medium for one in absent),
        "media": media,
        "kinds": {
            f"{medium}: {kind}": _share(
                one.correct for one in answers if (one.medium, one.kind) == (medium, kind)
            )
            for medium, kind in kinds
        },
    }


def _share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / max(1, len(found))


def removed(sft: float, aligned: float) -> float:
    """Return the share of the errors of SFT that are gone; negative if there are more.

    Args:
        sft: the share of exact answers of SFT.
        aligned: the same after RLHF.
    """
    return (aligned - sft) / max(1 - sft, 1e-9)
