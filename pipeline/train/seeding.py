"""The random state of a step."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed all random number generators by (seed, step, rank), whatever was drawn before."""
    state = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # for libraries that use the global generator
    torch.manual_seed(state)
