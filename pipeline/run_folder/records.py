"""What a run writes down.

RUN/metrics.jsonl       one object a step
RUN/bad_samples.jsonl   one object a sample that could not be used
RUN/hindsight.json      what the run was predicted to take, and what it took
RUN/features.json       which media go through the feature cache, and why
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.storage.atomic import atomic_file, write_json
from pipeline.config.trainer_state import TrainerState
from pipeline.run_folder.loggers import Logger, flat

log = logging.getLogger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_HINDSIGHT = "hindsight.json"
_FEATURES = "features.json"
_TOLERATED_OVER = 1000
"""Samples below which the share of bad ones is not yet taken at its word."""


class MetricsWriter:
    """The records of one run folder; only rank 0 writes.

    Args:
        run: the run folder.
        rank: this process's.
    """

    def __init__(self, run: Path, rank: int) -> None:
        self._metrics = run / "metrics.jsonl"
        self._bad = run / "bad_samples.jsonl"
        self._writes = rank == 0
        self._unwritten: dict[Path, str] = {}
        self._trackers: tuple[Logger, ...] = ()

    def show_in(self, trackers: Sequence[Logger]) -> None:
        """Hand every step's figures on to trackers, too."""
        self._trackers = tuple(trackers)

    def close(self) -> None:
        """Write what is pending, and let the trackers do so.

        Raises:
            UserError: the disk is still full.
        """
        for tracker in self._trackers:
            tracker.close()
        for path in list(self._unwritten):
            self._append(path, [])
        if self._unwritten:
            names = ", ".join(map(str, self._unwritten))
            raise UserError(f"{names}: no room for the last lines")

    def rewind(self, step: int) -> None:
        """Forget what lies past a checkpoint, so that every step stands in the records once."""
        for path in (self._metrics, self._bad):
            if self._writes and path.is_file():
                kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
                with atomic_file(path) as stream:
                    stream.write("".join(kept).encode())

    def step(self, metrics: Mapping[str, object]) -> None:
        """Append one step's figures."""
        self._append(self._metrics, [metrics])
        step = metrics["step"]
        assert isinstance(step, int)
        for tracker in self._trackers:
            tracker.log(step, flat(metrics))

    def bad(self, step: int, samples: Iterable[Mapping[str, object]]) -> None:
        """Append the samples that could not be used in a step."""
        self._append(self._bad, [{"step": step, **sample} for sample in samples])

    def check_bad(self, cursor: TrainerState, share: float) -> None:
        """Raise UserError once too large a share of the samples is bad; the same on every rank."""
        seen = max(cursor.samples + cursor.bad, _TOLERATED_OVER)
        if cursor.bad > share * seen:
            raise UserError(
                f"{cursor.bad} of {cursor.samples + cursor.bad} samples cannot be used, more than "
                f"--max-bad-fraction {share}; {self._bad} names each with its reason"
            )

    def _append(self, path: Path, records: Iterable[Mapping[str, object]]) -> None:
        """Append lines; while the disk is full they are kept, and written with the next ones."""
        if not self._writes:
            return
        kept = self._unwritten.pop(path, "")
        text = kept + "".join(json.dumps(record) + "\n" for record in records)
        try:
            _append_whole(path, text.encode())
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._unwritten[path] = text
            if not kept:
                log.warning("%s: %s; its lines are kept until there is room", path, error.strerror)


def _append_whole(path: Path, data: bytes) -> None:
    """Append all of it, through to the disk, or nothing."""
    with path.open("ab", buffering=0) as stream:
        end = stream.tell()
        try:
            while data:
                data = data[stream.write(data) or 0 :]
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(end)
            raise


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return a run's figures, one entry a step; without the line a killed run left half-written."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in _whole_lines(path)] if path.is_file() else []


def read_bad(run: Path) -> list[dict[str, object]]:
    """Return the samples that could not be used, with the step and the reason of each."""
    path = run / "bad_samples.jsonl"
    return [json.loads(line) for line in _whole_lines(path)] if path.is_file() else []


def write_forecast_check(run: Path, rows: list[dict[str, object]], notes: list[str]) -> None:
    """Write what was predicted and measured.

    Args:
        run: the run folder.
        rows: objects of `what`, `predicted`, `measured` and `unit`.
        notes: how it was predicted, in sentences.
    """
    write_json(run / _HINDSIGHT, {"rows": rows, "notes": notes})


def read_forecast_check(run: Path) -> dict[str, Any] | None:
    """Return what `write_forecast_check` wrote; None where a run has not come so far."""
    path = run / _HINDSIGHT
    return json.loads(path.read_bytes()) if path.is_file() else None


def write_features(run: Path, verdicts: Mapping[str, Mapping[str, object]]) -> None:
    """Write, by modality, the fields of `pipeline.feature_cache.training.CacheDecision`."""
    write_json(run / _FEATURES, verdicts)


def read_features(run: Path) -> dict[str, Any]:
    """Return what `write_features` wrote; nothing where a run has no cache."""
    path = run / _FEATURES
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
