"""What every part of a specification shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class SpecError(ValueError):
    """A mistake in a specification: one line, with what would be right."""


def choose(name: str, choices: Sequence[str], what: str) -> str:
    """Return `name` if it is among the choices.

    Raises:
        SpecError: it is not; the message names the nearest choice, or all of them.
    """
    if name in choices:
        return name
    near = get_close_matches(name, choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"want one of {', '.join(choices)}"
    raise SpecError(f"unknown {what} {name!r}: {hint}")


@dataclass(frozen=True, kw_only=True)
class ProjectorShape:
    """What a projector joins: derived from its neighbours, never written in a preset.

    Args:
        parts: parts of one medium (frames of a video, windows of a picture); 1 for a whole one.
        tokens: the encoder's per part.
        width_in: the encoder's.
        width_out: the backbone's.
    """

    parts: int
    tokens: int
    width_in: int
    width_out: int
