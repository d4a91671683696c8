"""What the engine is asked for, and what it reports while it works on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.data.encode import Example
from pipeline.generate.replies import GeneratedMedium, GenerationSettings


class Likely(NamedTuple):
    """A token with its log-probability."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """The log-probability of a chosen token, and the most likely tokens in its place."""

    chosen: Likely
    top: tuple[Likely, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some more text of an answer, and the tokens since the last piece if they were asked for."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Done:
    """The end of an answer.

    Args:
        reason: `stop`, or `length` where it was cut.
        tokens: that were generated.
        media: that it holds, in order.
        text: of the whole answer.
    """

    reason: str
    tokens: int
    media: Sequence[GeneratedMedium] = ()
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Why there is no more of an answer."""

    message: str


Event = Piece | Done | Failed


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How an answer is generated.

    Args:
        generation: seed, temperature, top_p, longest text, and how media are denoised.
        stops: texts that end it, besides the model's own.
        logprobs: number of most likely tokens to report at each one; None reports nothing.
    """

    generation: GenerationSettings
    stops: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(eq=False, kw_only=True)
class Job:
    """One answer.

    Args:
        model: the name of the one that gives it.
        example: the prompt.
        settings: how.
        on_event: is called with each event, in the engine's thread; must not block.

    Attributes:
        cancelled: nobody waits for the answer any more.
    """

    model: str
    example: Example
    settings: JobSettings
    on_event: Callable[[Event], None]
    cancelled: bool = False

    def cancel(self) -> None:
        """Free what the answer takes, before the next step."""
        self.cancelled = True
