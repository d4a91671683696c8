"""What all specs share: the error, the choice of a name, and a projector's shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

TINY_VOCABULARY = 384
TINY_POSITIONS = 1024
"""Of language models at `--scale tiny`; the byte tokenizer's ids fit into the vocabulary."""


class SpecError(ValueError):
    """An invalid specification: one line that says what is wrong and what would be right."""


def choose(name: str, choices: Sequence[str], what: str) -> str:
    """Return `name` if it is among the choices.

    Raises:
        SpecError: it is not; the message suggests the nearest choice, or lists all of them.
    """
    if name in choices:
        return name
    near = get_close_matches(name, choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"want one of {', '.join(choices)}"
    raise SpecError(f"unknown {what} {name!r}: {hint}")


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
