"""Files that name a system: a preset file, a run's `config.json`, or a file of changes.

    {"name": …, "model": …, "pt": …, "sft": …}     a preset file: what `show` and `compose` print
    {"stage": …, "system": …, "data": …, …}        a run's configuration: its `config.json`
    {"preset": …, "set": …, "pt": …, "data": …}    a file of changes: a preset, and what differs

Each may be JSON or YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from etl.cli import UserError
from model.presets import PRESETS, system
from model.spec import System
from model.spec.base import suggest
from pipeline.config.decode import decode
from pipeline.config.older_versions import OlderVersionError
from pipeline.config.parts import complete_parts

CONFIG_FILE = "config.json"
SUFFIXES = (".json", ".yaml", ".yml")


def is_file(preset: str) -> bool:
    """Return whether a PRESET is the path of a file, and not a preset's name."""
    return Path(preset).suffix in SUFFIXES


def read_mapping(file: Path) -> Mapping[str, Any]:
    """Return the object in a JSON or YAML file.

    Raises:
        UserError: no such file, not JSON or YAML, or not an object.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; want a preset's name, or a file as `show` prints")
    try:
        value = json.loads(file.read_bytes()) if file.suffix == ".json" else None
        value = yaml.load(file.read_text(), _YamlLoader) if value is None else value
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: {error}") from None
    if not isinstance(value, Mapping):
        raise UserError(f"{file}: {value!r}, want the fields of a preset or of a run")
    return value


class _YamlLoader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does; PyYAML, of YAML 1.1, as a text."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_preset(preset: str) -> tuple[System, list[str], dict[str, Any]]:
    """Return the system of a preset's name or file.

    Returns:
        The system; the changes that a file of changes makes to it, as `--set` takes them; and the
        fields of a run that the file has: of a preset's name or file none.

    Raises:
        UserError, SpecError: an unknown preset, or a file that does not fit.
    """
    if preset not in PRESETS and Path(preset).is_dir():
        raise UserError(
            f"{preset}: a folder; want a preset's name (`python -m pipeline list`), or a file such "
            f"as {Path(preset, CONFIG_FILE)}"
        )
    if not is_file(preset):
        return system(preset), [], {}
    file = Path(preset)
    value = read_mapping(file)
    if "preset" in value:
        return _read_changes(file, value)
    run: dict[str, Any] = {}
    where = file.name
    if "system" in value:
        run = {name: item for name, item in value.items() if name != "system"}
        value, where = value["system"], f"{where}.system"
    try:
        return decode(System, complete_parts(value), where), [], run
    except OlderVersionError as error:
        raise older_file(file, error) from None


def older_file(file: Path, error: OlderVersionError) -> OlderVersionError:
    """Return the error for a file with an old key: of a run folder's own file, for the folder."""
    if file.name == CONFIG_FILE:
        return OlderVersionError(file.parent, error.old, error.new)
    return OlderVersionError(file, error.old, error.new, advice="rename the key")


def _read_changes(file: Path, value: Mapping[str, Any]) -> tuple[System, list[str], dict[str, Any]]:
    base, settings, run = read_preset(_relative(file, value["preset"]))
    sections = [field.name for field in fields(System)]
    own = asdict(base)
    changes = value.get("set", {})
    if not isinstance(changes, Mapping):
        raise UserError(
            f"{file.name}.set: {changes!r}, want paths and values, as `show` names them"
        )
    for name, item in value.items():
        if name in sections:
            settings += _settings(name, item, own[name], file)
        elif name not in ("preset", "set"):
            run[name] = item
    settings += [f"{path}={json.dumps(item)}" for path, item in changes.items()]
    return base, settings, run


def _relative(file: Path, preset: object) -> str:
    """Return the preset of a file of changes; the path of a file is relative to it."""
    if not isinstance(preset, str):
        raise UserError(f"{file.name}.preset: {preset!r}, want a preset's name or file")
    return str(file.parent / preset) if is_file(preset) else preset


def _settings(path: str, value: object, own: object, file: Path) -> list[str]:
    """Return a section of a file of changes as `--set` takes it, field by field.

    An object that names its `kind`, or that has no counterpart, replaces the preset's.
    """
    if not isinstance(value, Mapping) or not isinstance(own, Mapping) or "kind" in value:
        return [f"{path}={json.dumps(value)}"]
    nested: list[str] = []
    for name, item in value.items():
        if name not in own:
            raise UserError(f"{file.name}: {path}.{name}: no such field; {suggest(str(name), own)}")
        nested += _settings(f"{path}.{name}", item, own[name], file)
    return nested


def leaves(settings: Sequence[str]) -> list[str]:
    """Return the settings whose values are no components: numbers, texts, and lists of them."""
    return [setting for setting in settings if not _has_objects(setting.partition("=")[2])]


def _has_objects(text: str) -> bool:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, dict) for item in items)
