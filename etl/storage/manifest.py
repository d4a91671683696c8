"""`manifest.json`: declares a folder of shards complete, lists them, and counts the drops.

It is written last: its presence means "complete". Imports neither Ray nor torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.storage.atomic import write_json
from etl.storage.schema import SCHEMA_VERSION

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a folder; `path` is relative to the folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a complete folder holds, which plan made it, and what was dropped for which reason.

    Raises:
        ValueError: the counts do not add up: a row would be missing or counted twice.
    """

    job: str
    plan: Mapping[str, Any]
    input_rows: int
    rows: int
    drops: Mapping[str, int]
    shards: tuple[Shard, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.input_rows != self.rows + sum(self.drops.values()):
            raise ValueError(
                f"{self.input_rows} input rows are not {self.rows} rows"
                f" + {sum(self.drops.values())} drops"
            )
        shard_rows = sum(shard.rows for shard in self.shards)
        if self.rows != shard_rows:
            raise ValueError(f"{self.rows} rows, but the shards hold {shard_rows}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Declare a folder complete."""
    write_json(folder / MANIFEST, dataclasses.asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        UserError: the folder or its manifest is missing, unreadable or of another version.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST}; not complete, or not written by an ETL job")
    try:
        value = json.loads(path.read_bytes())
        version = value["schema_version"]
        if version != SCHEMA_VERSION:
            raise UserError(f"{path}: schema version {version}, want {SCHEMA_VERSION}")
        shards = tuple(Shard(**shard) for shard in value.pop("shards"))
        return Manifest(shards=shards, **value)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a manifest ({error})") from None
