"""How far a run has trained: what a checkpoint restores besides weights and optimizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Where a run stands after a completed step; a resumed run goes on from here.

    Args:
        step: completed optimizer steps.
        samples: samples delivered to completed steps, without the bad ones.
        bad: samples that could not be used.
        tokens: tokens delivered, padding not counted.
    """

    step: int = 0
    samples: int = 0
    bad: int = 0
    tokens: int = 0
