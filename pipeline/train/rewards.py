"""Rewards of sampled answers: verifiable ones, and functions of the user's own."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from etl.cli import UserError
from etl.storage.schema import Medium, Sample, words_of
from pipeline.train.reward_models import PREFIX


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A sampled answer.

    Args:
        sample: the question, its media, and the true answer as the last turn.
        text: what the model said, without special tokens.
        finished: whether it ended before the limit of its length.
        media: that it generated, as files: PNG, MP4 or WAV.
    """

    sample: Sample
    text: str
    finished: bool
    media: tuple[Medium, ...] = ()

    @property
    def truth(self) -> str:
        """The sample's own answer."""
        return words_of(self.sample.turns[-1].text)


Reward = Callable[[Answer], float]
"""The reward of an answer; any number."""


def exact(answer: Answer) -> float:
    """Return 1 if the answer is the true one, but for case and surrounding whitespace, else 0."""
    return float(answer.text.strip().lower() == answer.truth.strip().lower())


JUDGE = "judge"
"""The name of the reward that a language model gives (`pipeline.train.judge_reward`)."""
BUILT_IN: dict[str, Reward] = {"exact": exact}


def load_rewards(names: Sequence[str]) -> tuple[Reward, ...]:
    """Return the reward functions of these names.

    Args:
        names: of `BUILT_IN`, or `FILE.py:FUNCTION`, or `MODULE:FUNCTION`; those of reward models
            and of a judge have no function here.

    Raises:
        UserError: one that cannot be found.
    """
    functions = [name for name in names if name != JUDGE and not name.startswith(PREFIX)]
    return tuple(BUILT_IN.get(name) or _own(name) for name in functions)


def _own(name: str) -> Reward:
    where, _, function = name.rpartition(":")
    if not where:
        known = ", ".join([*BUILT_IN, f"{PREFIX}RUN", JUDGE])
        raise UserError(f"rewards: {name!r}, want {known}, FILE.py:FUNCTION or MODULE:FUNCTION")
    try:
        module = (
            _from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        )
        found: Reward = getattr(module, function)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise UserError(f"rewards: {name!r}: {error}") from None
    return found


def _from_file(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def total(rewards: Sequence[Reward], answer: Answer) -> float:
    """Return the sum of all rewards of an answer.

    Raises:
        UserError: a function failed, or returned something that is no number.
    """
    value = 0.0
    for reward in rewards:
        name = getattr(reward, "__name__", repr(reward))
        try:
            value += float(reward(answer))
        except Exception as error:  # whatever a user's function raises
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"reward {name}: sample {answer.sample.id}: {what}") from error
    return value
