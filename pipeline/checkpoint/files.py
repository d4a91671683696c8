"""A checkpoint as files: what they are called, whether they are sound, and how they appear."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etl.storage.atomic import atomic_file, file_sha256, write_json

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
APART = "objective.safetensors"
ZERO = "zero"
MANIFEST = "manifest.json"
_PREFIX = "step-"
_PARTIAL = ".partial"
_REMOVED = ".removed"

Described = dict[str, dict[str, Any]]
"""By path within a checkpoint: the `bytes` and the `sha256` of a file."""


class CheckpointFolder:
    """RUN/checkpoints: finds what is sound, lets new ones appear and old ones go.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def final(self, step: int) -> Path:
        """Return where the checkpoint of a step stands when it is whole."""
        return self.path / f"{_PREFIX}{step:08d}"

    def partial(self, step: int) -> Path:
        """Return where it is written."""
        return self.path / f"{_PREFIX}{step:08d}{_PARTIAL}"

    def steps(self) -> list[Path]:
        """Return the complete checkpoints, the newest first."""
        paths = (path for path in self.path.glob(f"{_PREFIX}*") if not path.suffix)
        return sorted(paths, reverse=True)

    def remove_leftovers(self) -> None:
        """Delete what killed or failed writers have left; only when none is at work."""
        for stale in self.path.glob(f"{_PREFIX}*.*"):
            shutil.rmtree(stale, ignore_errors=True)

    def publish(self, partial: Path, content: Mapping[str, Any], files: Described) -> None:
        """Describe what was written, rename it, and only then point `latest` at it.

        Args:
            partial: as `self.partial` names it, complete but for its manifest.
            content: what the manifest tells of it.
            files: what was written.
        """
        final = partial.with_suffix("")
        write_json(partial / MANIFEST, {**content, "files": files})
        if final.exists():  # of the same step, before the run went on from an older one
            self._remove(final)
        partial.rename(final)
        self.point_latest(final.name)

    def prune(self, keep: int, keep_every: int | None) -> None:
        """Delete what is too old: all but `latest`, the `keep` - 1 before it and the milestones.

        Args:
            keep: how many stay.
            keep_every: steps of which each multiple stays for good.
        """
        newest = self.latest()
        older = [path for path in self.steps() if newest is not None and path.name < newest]
        for old in older[keep - 1 :]:
            if keep_every is None or step_of(old) % keep_every:
                self._remove(old)

    def _remove(self, checkpoint: Path) -> None:
        """Delete one; a kill in the midst of it leaves nothing that looks like a checkpoint."""
        gone = checkpoint.with_suffix(_REMOVED)
        shutil.rmtree(gone, ignore_errors=True)
        checkpoint.rename(gone)
        shutil.rmtree(gone)

    def latest(self) -> str | None:
        """Return the name of the checkpoint that a run goes on from."""
        pointer = self.path / "latest"
        return pointer.read_text().strip() if pointer.is_file() else None

    def point_latest(self, name: str) -> None:
        """Say which checkpoint a run goes on from; newer ones no longer count."""
        with atomic_file(self.path / "latest") as stream:
            stream.write(f"{name}\n".encode())

    def newest_sound(self) -> Path | None:
        """Return the newest checkpoint whose checksums hold; say what is wrong with newer ones."""
        latest = self.latest()
        for checkpoint in self.steps():
            if latest is not None and checkpoint.name > latest:
                continue  # after going on from an older step, these are another run's future
            fault = damage(checkpoint)
            if fault is None:
                return checkpoint
            log.warning("%s: %s; going back to the one before it", checkpoint, fault)
        return None


def step_of(checkpoint: Path) -> int:
    """Return the step that a complete checkpoint was written after."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint's manifest tells."""
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())
    return manifest


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint's files, or None."""
    try:
        files = read_manifest(checkpoint)["files"]
    except (OSError, ValueError, KeyError):
        return f"damaged: no readable {MANIFEST}"
    for name, want in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"damaged: {name} is missing"
        if path.stat().st_size != want["bytes"] or file_sha256(path) != want["sha256"]:
            return f"damaged: {name} is not what was written"
    return None


def describe(folder: Path, files: Iterable[Path]) -> Described:
    """Describe files that lie below a folder."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    }
