"""Swap a part of a preset from the command line: `--set model.inputs.image.projector='{…}'`.

The path is the one that `show` prints; a slot may be named by its modality instead of its number.
What is set goes through the strict decoder, so that it is checked as a file would be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from etl.cli import UserError
from model.spec import System
from pipeline.config.decode import decode


def override(system: System, settings: Sequence[str]) -> System:
    """Return a system with some of its fields replaced.

    Args:
        system: the preset.
        settings: `PATH=VALUE`, the value as JSON; a word that is no JSON is taken as a text.

    Raises:
        UserError: no such field, or a value that does not fit it.
        SpecError: parts that cannot go together.
    """
    if not settings:
        return system
    whole = json.loads(json.dumps(asdict(system)))
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: want PATH=VALUE, say model.backbone.layers=8")
        *parents, last = path.split(".")
        place: Any = whole
        for depth, name in enumerate(parents):
            place = place[_key(place, name, ".".join(parents[: depth + 1]))]
        place[_key(place, last, path)] = _value(text)
    return decode(System, whole, system.name)


def _key(place: object, name: str, path: str) -> str | int:
    """Return the key or number by which `name` is found in a place."""
    if isinstance(place, dict) and name in place:
        return name
    if isinstance(place, list):
        names = [str(item.get("modality", "")) for item in place if isinstance(item, dict)]
        if name in names:
            return names.index(name)
        if name.isdecimal() and int(name) < len(place):
            return int(name)
        choices = [*filter(None, names), *map(str, range(len(place)))]
    else:
        choices = list(place) if isinstance(place, dict) else []
    near = get_close_matches(name, choices, n=1) or choices
    raise UserError(f"--set {path}: no such field; want {' or '.join(near) or 'no more of it'}")


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
