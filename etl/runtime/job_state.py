"""The on-disk state of a running job: its plan, and which of its work units are done.

It lives in `OUTPUT/.work/` until the job is complete. A work unit is a fixed span of input rows.
The files of a unit that is done are in a folder of their own, which appears atomically and never
changes: a unit without a folder is not done, and a second worker that repeats it, or one that
outlived its killed job, is ignored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from etl.cli import UserError
from etl.filters.base import StepYield
from etl.storage.atomic import atomic_file, file_sha256, remove_partials, write_json
from etl.storage.lock import owner_lock
from etl.storage.manifest import MANIFEST, Shard, read_manifest

STAGED, KEYS, DROPPED, RESULT = "rows.arrow", "keys.arrow", "drops.arrow", "result.json"
"""The files in the folder of a unit that is done."""

CODE_VERSION = 6
"""Raise it when the same input and options give other rows, or when files in `.work` change."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines a job's output, byte for byte."""

    job: str
    inputs: tuple[Mapping[str, str], ...]
    config: Mapping[str, Any]
    code_version: int = CODE_VERSION

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """How a saved plan differs from this one; paths of inputs do not count, their bytes do."""
        # Compared as JSON gives it back, where tuples are lists.
        mine, theirs = _flat(json.loads(json.dumps(dataclasses.asdict(self)))), _flat(other)
        return [
            f"{name} {theirs.get(name)!r} there, {mine.get(name)!r} here"
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name)
        ]


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    digests = [entry["sha256"][:12] for entry in plan["inputs"]]
    rest = {name: plan[name] for name in ("job", "code_version")}
    return {"input sha256": " ".join(digests), **rest, **plan["config"]}


def make_plan(job: str, files: Sequence[Path], config: Mapping[str, Any]) -> Plan:
    """The plan of a job over input files."""
    inputs = tuple({"path": str(file.resolve()), "sha256": file_sha256(file)} for file in files)
    return Plan(job=job, inputs=inputs, config=dict(config))


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What became of one unit's candidates; `shard` is None if no row is left."""

    number: int
    yields: tuple[StepYield, ...]
    shard: Shard | None


class JobState:
    """The state of a job in its output folder; nothing is held in memory.

    Args:
        output: the job's output folder.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.work = output / ".work"

    def is_complete(self, plan: Plan) -> bool:
        """Whether the output folder holds the complete result of exactly this plan.

        Another plan that has come to no row yet, or to none in the end, does not count: the command
        was probably corrected, and `remove_worthless` removes what the other one left.

        Raises:
            UserError: the folder belongs to another job, or to an older version.
        """
        if (self.output / MANIFEST).exists():
            manifest = read_manifest(self.output)
            return self._is_same(plan, manifest.plan, rows=bool(manifest.rows))
        saved = self.saved_plan()
        if saved:
            self._is_same(plan, saved["plan"], rows=self._has_units())
        elif any(self.output.glob("*.arrow")):
            raise UserError(f"--output {self.output}: holds Arrow files that no ETL job wrote")
        return False

    def _is_same(self, plan: Plan, other: Mapping[str, Any], *, rows: bool) -> bool:
        """Whether the folder's plan is this one; refuses another one that has `rows`."""
        version = other.get("code_version") if isinstance(other, Mapping) else None
        if isinstance(version, int) and version != plan.code_version:
            age = "an older" if version < plan.code_version else "a newer"
            raise UserError(
                f"--output {self.output}: made by {age} version of mmloom; start a new --output"
            )
        try:
            found = plan.differences(other)
        except (KeyError, TypeError, AttributeError):
            rows, found = True, ["it was not written by an ETL job"]
        if found and rows:
            raise UserError(
                f"--output {self.output}: belongs to another job ({'; '.join(found[:3])});"
                " want an empty folder or the same input and options"
            )
        return not found

    def _has_units(self) -> bool:
        return any(self.work.glob("unit-*"))

    def remove_worthless(self, plan: Plan) -> None:
        """Remove what another plan left that has come to no row; call it with the folder locked."""
        if (self.output / MANIFEST).exists():
            if not self.is_complete(plan):
                (self.output / MANIFEST).unlink()
                self.reset()
        elif (saved := self.saved_plan()) and plan.differences(saved["plan"]):
            self.is_complete(plan)  # refuses what has rows
            self.reset()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of the folder; the lock of a killed process is taken over.

        Raises:
            UserError: another run holds it, or the folder cannot be written.
        """
        with owner_lock(self.work / "lock", name=f"--output {self.output}"):
            yield

    @property
    def worker_log(self) -> Path:
        """What local workers print; useful if one dies."""
        return self.work / "workers.log"

    # Planning.

    @property
    def candidates_path(self) -> Path:
        """Arrow file of the rows to download; record batch k holds those of unit k."""
        return self.work / "candidates.arrow"

    def unit_candidates(self, number: int) -> pa.Table:
        """The rows of a unit that are to be downloaded."""
        path = str(self.candidates_path)
        with pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
            return pa.table(reader.get_batch(number))

    @property
    def plan_drops_path(self) -> Path:
        """Table of the rows dropped before the download."""
        return self.work / "plan.drops.arrow"

    def saved_plan(self) -> dict[str, Any] | None:
        """What `save_plan` saved, or None if planning was not finished."""
        path = self.work / "plan.json"
        return json.loads(path.read_bytes()) if path.exists() else None

    def save_plan(
        self, plan: Plan, *, unit_rows: Sequence[int], input_rows: int, yields: Sequence[StepYield]
    ) -> None:
        """Declare the planning finished; `unit_rows` is the number of candidates in each unit."""
        write_json(
            self.work / "plan.json",
            {
                "plan": dataclasses.asdict(plan),
                "unit_rows": list(unit_rows),
                "input_rows": input_rows,
                "yields": [dataclasses.asdict(entry) for entry in yields],
            },
        )

    def add_time(self, stage: str, started: float, rows: int) -> None:
        """Add the time since `started` (`time.monotonic`) to a stage's total over all runs."""
        timings = self.timings()
        before = timings.get(stage, {"seconds": 0.0, "rows": 0})
        seconds = round(before["seconds"] + time.monotonic() - started, 3)
        timings[stage] = {"seconds": seconds, "rows": before["rows"] + rows}
        write_json(self.work / "timings.json", timings)

    def timings(self) -> dict[str, Any]:
        """Stage → its `seconds` and `rows`; interrupted stages are not included."""
        path = self.work / "timings.json"
        return json.loads(path.read_bytes()) if path.exists() else {}

    def remove_partial_work(self) -> None:
        """Remove what a killed run left half-written, and units whose shard was damaged since."""
        for folder in (self.output, self.work):
            remove_partials(folder)
        for folder in self.work.glob("unit-*"):
            result = self.unit_result(int(folder.name.rpartition("-")[2]))
            shard = result and result.shard
            if not result or (shard and not _has_size(folder / shard.path, shard.bytes)):
                shutil.rmtree(folder)

    def reset(self) -> None:
        """Remove everything but the lock."""
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def discard(self) -> None:
        """Remove the state of a job that is complete or has failed.

        It is renamed first: a later run might mistake half of it for its own.
        """
        with contextlib.suppress(FileNotFoundError):
            self.work.rename(self.output / f"{self.work.name}.{uuid.uuid4().hex}.partial")
        remove_partials(self.output)
        with contextlib.suppress(OSError):
            self.output.rmdir()  # only if empty

    def remove_leftovers(self) -> None:
        """Remove what a job left that was killed in `discard`."""
        for folder in self.output.glob(f"{self.work.name}.*.partial"):
            shutil.rmtree(folder, ignore_errors=True)

    # Work units.

    def unit_folder(self, number: int) -> Path:
        """Folder of a unit that is done."""
        return self.work / f"unit-{number:05d}"

    def keys_path(self, number: int) -> Path:
        """Table of a unit's staged rows, in order (`etl.runtime.worker.STAGED_SCHEMA`)."""
        return self.unit_folder(number) / KEYS

    def drops_path(self, number: int) -> Path:
        """Table of a unit's dropped candidates."""
        return self.unit_folder(number) / DROPPED

    def staged_path(self, number: int) -> Path:
        """Shard of a unit's valid samples, before the global filters."""
        return self.unit_folder(number) / STAGED

    @contextlib.contextmanager
    def open_unit(self, number: int) -> Iterator[Path]:
        """A temporary folder for a unit's files; it is removed unless `commit_unit` takes it."""
        folder = self.work / f".unit-{number:05d}.{uuid.uuid4().hex}.partial"
        folder.mkdir()  # without parents: a worker that outlives its job must not recreate `.work`
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit_unit(self, folder: Path, result: UnitResult) -> None:
        """Declare a unit done, with the files in `folder`, unless another worker was first."""
        write_json(folder / RESULT, dataclasses.asdict(result))
        try:
            folder.rename(self.unit_folder(result.number))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def unit_result(self, number: int) -> UnitResult | None:
        """A unit's result, or None if it is not done."""
        path = self.unit_folder(number) / RESULT
        if not path.exists():
            return None
        value = json.loads(path.read_bytes())
        shard = Shard(**value["shard"]) if value["shard"] else None
        yields = tuple(StepYield(**entry) for entry in value["yields"])
        return UnitResult(number=number, yields=yields, shard=shard)

    def save_final_shard(self, number: int, shard: Shard) -> None:
        """Declare the final shard of a unit written."""
        write_json(self.work / f"final-{number:05d}.json", dataclasses.asdict(shard))

    def final_shard(self, number: int) -> Shard | None:
        """The final shard of a unit, or None if it is not written or no longer whole."""
        path = self.work / f"final-{number:05d}.json"
        if not path.exists():
            return None
        shard = Shard(**json.loads(path.read_bytes()))
        return shard if _has_size(self.output / shard.path, shard.bytes) else None


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow IPC file atomically."""
    with atomic_file(path) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """Read an Arrow IPC file through a memory map."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()
