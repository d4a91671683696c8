"""The files of a checkpoint: names, checksums, atomic publication, and which of them is valid."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etl.storage.atomic import atomic_file, file_sha256, write_json
from pipeline.config.older_versions import check_manifest

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
OBJECTIVE_WEIGHTS = "objective.safetensors"
ZERO = "zero"
MANIFEST = "manifest.json"
VALIDATION = "validation"
"""Of a manifest: what `validation.jsonl` has of the checkpoint's step, if it was validated."""
_PREFIX = "step-"
_PARTIAL = ".partial"
_REMOVED = ".removed"

Checksums = dict[str, dict[str, Any]]
"""By path within a checkpoint: the `bytes` and the `sha256` of a file."""


class CheckpointFolder:
    """RUN/checkpoints: finds valid checkpoints, publishes new ones and prunes old ones.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def final(self, step: int) -> Path:
        """Return the path of the complete checkpoint of a step."""
        return self.path / f"{_PREFIX}{step:08d}"

    def partial(self, step: int) -> Path:
        """Return the path that a step's checkpoint has while it is being written."""
        return self.path / f"{_PREFIX}{step:08d}{_PARTIAL}"

    def complete(self) -> list[Path]:
        """Return the complete checkpoints, the newest first."""
        paths = (path for path in self.path.glob(f"{_PREFIX}*") if not path.suffix)
        return sorted(paths, reverse=True)

    def remove_leftovers(self) -> None:
        """Delete what killed or failed writers left behind; no writer may be at work."""
        for stale in self.path.glob(f"{_PREFIX}*.*"):
            shutil.rmtree(stale, ignore_errors=True)

    def publish(self, partial: Path, content: Mapping[str, Any], files: Checksums) -> None:
        """Write the manifest, rename the folder, and only then point `latest` at it.

        Args:
            partial: a path of `self.partial`; complete except for the manifest.
            content: the manifest's other entries.
            files: checksums of the files written.
        """
        final = partial.with_suffix("")
        write_json(partial / MANIFEST, {**content, "files": files})
        if final.exists():  # of the same step, written before the run resumed from an older one
            self._remove(final)
        partial.rename(final)
        self.point_latest(final.name)
        self.point_best()

    def prune(self, keep_last: int, keep_every: int | None) -> None:
        """Delete old checkpoints but `latest`, `keep_last` - 1 before it, milestones and the best.

        Args:
            keep_last: how many to keep.
            keep_every: a checkpoint whose step is a multiple of this is a milestone.
        """
        newest, best = self.latest(), self.best(self.latest())
        older = [path for path in self.complete() if newest is not None and path.name < newest]
        for old in older[keep_last - 1 :]:
            if old.name != (best and best[0]) and (keep_every is None or step_of(old) % keep_every):
                self._remove(old)

    def _remove(self, checkpoint: Path) -> None:
        """Delete a checkpoint; a kill during that leaves nothing that looks like a checkpoint."""
        removed = checkpoint.with_suffix(_REMOVED)
        shutil.rmtree(removed, ignore_errors=True)
        checkpoint.rename(removed)
        shutil.rmtree(removed)

    def latest(self) -> str | None:
        """Return the name of the checkpoint that a run resumes from."""
        pointer = self.path / "latest"
        return pointer.read_text().strip() if pointer.is_file() else None

    def point_latest(self, name: str) -> None:
        """Set the checkpoint that a run resumes from; newer ones are then ignored."""
        with atomic_file(self.path / "latest") as stream:
            stream.write(f"{name}\n".encode())

    def best(self, newest: str | None) -> tuple[str, dict[str, Any]] | None:
        """Return the checkpoint with the lowest validation loss, and its validation.

        Losses on other validation data than the newest one's are not compared.

        Args:
            newest: the name of the checkpoint up to which they are compared; None for all.
        """
        best: tuple[str, dict[str, Any]] | None = None
        for checkpoint in self.complete():
            if newest is not None and checkpoint.name > newest:
                continue  # of an abandoned future
            try:
                found = read_manifest(checkpoint).get(VALIDATION)
            except (OSError, ValueError):
                continue  # damaged; who loads it says so
            if not found or found["loss"] is None:
                continue
            if best is None or (
                found["data"] == best[1]["data"] and found["loss"] <= best[1]["loss"]
            ):
                best = checkpoint.name, found
        return best

    def point_best(self) -> None:
        """Write the name of the best checkpoint up to `latest` to `best`, if any was validated."""
        best = self.best(self.latest())
        if best is None:
            (self.path / "best").unlink(missing_ok=True)
            return
        with atomic_file(self.path / "best") as stream:
            stream.write(f"{best[0]}\n".encode())

    def newest_valid(self) -> Path | None:
        """Return the newest checkpoint whose checksums match; log what is wrong with newer ones.

        Raises:
            OlderVersionError: an older version wrote it.
        """
        latest = self.latest()
        for checkpoint in self.complete():
            if latest is not None and checkpoint.name > latest:
                continue  # the run resumed from an older step: these belong to its abandoned future
            damage = find_damage(checkpoint)
            if damage is None:
                check_manifest(self.path.parent, read_manifest(checkpoint))
                return checkpoint
            log.warning("%s: %s; falling back to the checkpoint before it", checkpoint, damage)
        return None


def step_of(checkpoint: Path) -> int:
    """Return the step after which a complete checkpoint was written."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest."""
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())
    return manifest


def find_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None."""
    try:
        files = read_manifest(checkpoint)["files"]
    except (OSError, ValueError, KeyError):
        return f"damaged: no readable {MANIFEST}"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"damaged: {name} is missing"
        if path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            return f"damaged: {name} is not what was written"
    return None


def checksums(folder: Path, files: Iterable[Path]) -> Checksums:
    """Return the sizes and checksums of files in a folder, by relative path."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    }
