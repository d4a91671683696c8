"""The files that a run writes, and their readers.

RUN/metrics.jsonl       one object per step
RUN/validation.jsonl    one object per validation
RUN/bad_samples.jsonl   one object per skipped sample
RUN/cut_samples.jsonl   one object per sample of whose media the encoders take only a part
RUN/starts.jsonl        when and how the run was started, and how it ended (`starts.py`)
RUN/forecast.json       forecast against actual: step time, memory, checkpoint size
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

METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORECAST = "forecast.json"
_MIN_SAMPLES = 1000
"""With fewer samples than this, the fraction of bad ones is taken of this number."""


class MetricsWriter:
    """Writes the metrics and the skipped samples of one run; only rank 0 writes.

    Args:
        run: the run folder.
        rank: of this process.
    """

    def __init__(self, run: Path, rank: int) -> None:
        self._metrics = run / METRICS
        self._validation = run / VALIDATION
        self._bad = run / "bad_samples.jsonl"
        self._cut = run / "cut_samples.jsonl"
        self._writes = rank == 0
        self._first_reason: str | None = None
        self._unwritten: dict[Path, str] = {}
        self._loggers: tuple[Logger, ...] = ()

    def log_to(self, loggers: Sequence[Logger]) -> None:
        """Pass the metrics of every step to loggers, too."""
        self._loggers = tuple(loggers)

    def close(self) -> None:
        """Write what is pending and close the loggers.

        Raises:
            UserError: the disk is still full.
        """
        for logger in self._loggers:
            logger.close()
        for path in list(self._unwritten):
            self._append(path, [])
        if self._unwritten:
            names = ", ".join(map(str, self._unwritten))
            raise UserError(f"{names}: no room for the last lines")

    def rewind(self, step: int) -> None:
        """Remove the lines after a checkpoint's step, so that every step is in the files once."""
        for path in (self._metrics, self._validation, self._bad, self._cut):
            if self._writes and path.is_file():
                lines = [line for line in whole_lines(path) if json.loads(line)["step"] <= step]
                with atomic_file(path) as stream:
                    stream.write("".join(lines).encode())

    def step(self, metrics: Mapping[str, object]) -> None:
        """Append the metrics of one step."""
        self._append(self._metrics, [metrics])
        step = metrics["step"]
        assert isinstance(step, int)
        for logger in self._loggers:
            logger.log(step, flat(metrics))

    def validation(self, metrics: Mapping[str, object]) -> None:
        """Append a validation; loggers get it under `validation/`."""
        self._append(self._validation, [metrics])
        step = metrics["step"]
        assert isinstance(step, int)
        for logger in self._loggers:
            logger.log(step, flat({"validation": metrics}))

    def bad(self, step: int, samples: Iterable[Mapping[str, object]]) -> None:
        """Append the samples that were skipped in a step; called on every rank."""
        samples = list(samples)
        if samples and self._first_reason is None:
            self._first_reason = str(samples[0].get("reason"))
        self._append(self._bad, [{"step": step, **sample} for sample in samples])

    def cut(self, step: int, samples: Iterable[Mapping[str, object]]) -> None:
        """Append the samples of a step of whose media the encoders take only a part."""
        self._append(self._cut, [{"step": step, **sample} for sample in samples])

    def check_bad(self, state: TrainerState, max_fraction: float) -> None:
        """Raise UserError if too many samples are bad; the same on every rank."""
        samples = state.samples + state.bad
        if state.bad > max_fraction * max(samples, _MIN_SAMPLES):
            first = f"; first: {self._first_reason}" if self._first_reason else ""
            raise UserError(
                f"{state.bad} of {samples} samples cannot be used, more than --max-bad-fraction "
                f"{max_fraction}{first}; {self._bad} names each with its reason"
            )

    def _append(self, path: Path, objects: Iterable[Mapping[str, object]]) -> None:
        """Append lines; while the disk is full they are kept, and written with the next ones."""
        if not self._writes:
            return
        unwritten = self._unwritten.pop(path, "")
        text = unwritten + "".join(json.dumps(one, allow_nan=False) + "\n" for one in objects)
        try:
            append_all(path, text.encode())
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            self._unwritten[path] = text
            if not unwritten:
                log.warning("%s: %s; its lines are kept until there is room", path, error.strerror)


def append_all(path: Path, data: bytes) -> None:
    """Append and fsync all of the data, or nothing."""
    with path.open("ab", buffering=0) as stream:
        end = stream.tell()
        try:
            while data:
                data = data[stream.write(data) or 0 :]
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(end)
            raise


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return a run's metrics by step; skips the partial line that a killed run may leave."""
    return [json.loads(line) for line in whole_lines(run / METRICS)]


def read_validations(run: Path, data: str | None = None) -> list[dict[str, Any]]:
    """Return a run's validations by step, on the same data, whose losses can be compared.

    Args:
        run: the run folder.
        data: identity of the data; None for those of the last validation.
    """
    found = [json.loads(line) for line in whole_lines(run / VALIDATION)]
    data = data or (found[-1]["data"] if found else None)
    return [one for one in found if one["data"] == data]


def last_step(run: Path) -> int:
    """Return the last step in a run's metrics; 0 for none."""
    lines = whole_lines(run / METRICS)
    return int(json.loads(lines[-1])["step"]) if lines else 0


def read_bad_samples(run: Path) -> list[dict[str, object]]:
    """Return the skipped samples, each with its step and the reason."""
    return [json.loads(line) for line in whole_lines(run / "bad_samples.jsonl")]


def skipped_positions(run: Path) -> dict[int, str]:
    """Return the positions of a run's skipped samples in its data, and the reason of each."""
    return {int(str(bad["position"])): str(bad["reason"]) for bad in read_bad_samples(run)}


def read_cut_samples(run: Path) -> list[dict[str, object]]:
    """Return the samples of whose media the encoders take only a part, each with its step."""
    return [json.loads(line) for line in whole_lines(run / "cut_samples.jsonl")]


def write_forecast(run: Path, rows: list[dict[str, object]], notes: list[str]) -> None:
    """Write the forecast against actual.

    Args:
        run: the run folder.
        rows: objects with `quantity`, `forecast`, `actual` and `unit`.
        notes: sentences that say how the forecast was made.
    """
    write_json(run / _FORECAST, {"rows": rows, "notes": notes})


def read_forecast(run: Path) -> dict[str, Any] | None:
    """Return what `write_forecast` wrote; None for a run that has not got that far."""
    path = run / _FORECAST
    return json.loads(path.read_bytes()) if path.is_file() else None


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file without a partial last one; none if there is no file."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
