"""Override fields of a preset on the command line: `--set model.inputs.image.projector='{…}'`.

The path is the one that `show` prints; a branch may be given by its modality instead of its index.
Values go through the strict decoder, so they are checked as those of a file are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from etl.cli import UserError
from model.spec import System
from model.spec.base import suggest
from pipeline.config.decode import decode
from pipeline.config.parts import complete_parts


def override(system: System, settings: Sequence[str]) -> System:
    """Return a system with some of its fields replaced.

    Args:
        system: the preset.
        settings: `PATH=VALUE`, the value as JSON; a value that is not JSON is a string.

    Raises:
        UserError: no such field, or a value that does not fit it.
        SpecError: components that do not work together.
    """
    if not settings:
        return system
    fields = json.loads(json.dumps(asdict(system)))
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: want PATH=VALUE, such as model.backbone.layers=8")
        *parents, last = path.split(".")
        node: Any = fields
        for depth, name in enumerate(parents):
            node = node[_key(node, name, ".".join(parents[: depth + 1]))]
        key = _key(node, last, path)
        node[key] = _value(text, node[key], path)
    return decode(System, complete_parts(fields), system.name)


def _key(node: object, name: str, path: str) -> str | int:
    """Return the key or the index of `name` in a dictionary or a list."""
    if isinstance(node, dict) and name in node:
        return name
    if isinstance(node, list):
        names = [str(item.get("modality", "")) for item in node if isinstance(item, dict)]
        if name in names:
            return names.index(name)
        if name.isdecimal() and int(name) < len(node):
            return int(name)
        choices = [*filter(None, names), *map(str, range(len(node)))]
    else:
        choices = list(node) if isinstance(node, dict) else []
    hint = suggest(name, choices) if choices else "want a shorter path"
    raise UserError(f"--set {path}: no such field; {hint}")


def _value(text: str, old: object, path: str) -> object:
    """Return a value; what is not JSON is a string, but not in place of an object or a list."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if text.startswith(("{", "[")) and not isinstance(old, str):
            raise UserError(f"--set {path}: {text!r} is not JSON ({error})") from None
        return text
