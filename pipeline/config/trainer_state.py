"""The trainer's state: how far a run has trained, restored from a checkpoint's manifest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """The progress of a run after a completed step; a resumed run continues from here.

    Args:
        step: completed optimizer steps.
        samples: samples delivered to completed steps, without the bad ones.
        bad: samples that were skipped, since they could not be used.
        tokens: tokens delivered to completed steps, without padding.
        skipped_steps: steps that changed no weight, since loss or gradient was not finite.
    """

    step: int = 0
    samples: int = 0
    bad: int = 0
    tokens: int = 0
    skipped_steps: int = 0
