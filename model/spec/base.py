"""What all specs share: the error, the choice of a name, and a projector's shape."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

TINY_VOCABULARY = 384
TINY_POSITIONS = 1024
"""Of language models at `--scale tiny`; the byte tokenizer's ids fit into the vocabulary."""


class SpecError(ValueError):
    """An invalid specification: one line that says what is wrong and what would be right."""


class FieldError(SpecError):
    """A field's value that is out of its range; `field` is its name, `reason` what is wrong.

    The decoder puts before it the name of what it decodes.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def check_at_least(spec: object, least: float, *fields: str) -> None:
    """Raise FieldError for a field below `least` that is not None, or that is not a number."""
    for field in fields:
        value = getattr(spec, field)
        if value is not None and not value >= least:
            raise FieldError(field, f"{value}, want {least} or more")


def check_fraction(spec: object, *fields: str) -> None:
    """Raise FieldError for a field that is not None and not in [0, 1]."""
    for field in fields:
        value = getattr(spec, field)
        if value is not None and not 0 <= value <= 1:
            raise FieldError(field, f"{value}, want a number from 0 to 1")


def choose(name: str, choices: Sequence[str], what: str) -> str:
    """Return `name` if it is among the choices.

    Raises:
        SpecError: it is not; the message suggests the nearest choice, or lists all of them.
    """
    if name in choices:
        return name
    raise SpecError(f"unknown {what} {name!r}: {suggest(name, choices)}")


def suggest(name: str, choices: Collection[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest choice, or all."""
    near = get_close_matches(name, choices, n=1)
    return f"did you mean {near[0]!r}?" if near else f"want one of {', '.join(choices)}"


@dataclass(frozen=True, kw_only=True)
class ProjectorShape:
    """An input projector's shape on both sides; derived from its neighbours, never configured.

    Args:
        segments: of one medium: frames of a video, tiles of a picture, clips of a sound; else 1.
        tokens: per segment, as the encoder returns them.
        width_in: the encoder's.
        width_out: the backbone's.
    """

    segments: int
    tokens: int
    width_in: int
    width_out: int
