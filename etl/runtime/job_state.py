"""The ledger of a job: its plan, and which of its planned ranges are done.

It lies in `OUTPUT/.work/` while the job runs. A range is a fixed span of input rows. What a range
became lies in a folder of its own, which appears whole or not at all, and never changes: a range
without one was not done, and a second worker that does it again, or one that outlived its killed
job, comes too late.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
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
from etl.storage.shards import MANIFEST, Shard, read_manifest

STAGED, KEYS, DROPPED, RECEIPT = "rows.arrow", "keys.arrow", "drops.arrow", "receipt.json"
"""What lies in the folder of a range that was done."""

CODE_VERSION = 3
"""Raise it when the same input and options give other rows, so that runs are not mixed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides a job's output, byte for byte."""

    job: str
    inputs: tuple[Mapping[str, str], ...]
    config: Mapping[str, Any]
    code_version: int = CODE_VERSION

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Where another plan differs; where the input lies does not matter, its bytes do."""
        # As JSON gives it back, in which tuples are lists.
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
class Receipt:
    """What became of one range's candidates."""

    number: int
    yields: tuple[StepYield, ...]
    shard: Shard | None


class Ledger:
    """The files of a job in its output folder; all state is on disk.

    Args:
        output: the job's output folder.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.work = output / ".work"

    def complete(self, plan: Plan) -> bool:
        """Whether the output holds this very plan's result.

        Raises:
            UserError: it holds, or is about to hold, another job's.
        """
        if (self.output / MANIFEST).exists():
            self._refuse_other(plan, read_manifest(self.output).plan)
            return True
        if (self.work / "plan.json").exists():
            self._refuse_other(plan, json.loads((self.work / "plan.json").read_bytes())["plan"])
        elif any(self.output.glob("*.arrow")):
            raise UserError(f"--output {self.output}: holds Arrow files of another origin")
        return False

    def _refuse_other(self, plan: Plan, other: Mapping[str, Any]) -> None:
        try:
            found = plan.differences(other)
        except (KeyError, TypeError, AttributeError):
            found = ["it was not written by an ETL job"]
        if found:
            raise UserError(
                f"--output {self.output}: holds another job's work ({'; '.join(found[:3])});"
                " want an empty folder or the same input and options"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run out; a killed process' lock is gone with it.

        Raises:
            UserError: another run is at work.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("wb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"--output {self.output}: another run is at work there") from None
            yield

    # Planning.

    @property
    def candidates(self) -> Path:
        """The rows to be downloaded; record batch k holds those of range k."""
        return self.work / "candidates.arrow"

    def range_candidates(self, number: int) -> pa.Table:
        """The rows of a range that are to be downloaded."""
        with pa.memory_map(str(self.candidates)) as source, pa.ipc.open_file(source) as reader:
            return pa.table(reader.get_batch(number))

    @property
    def plan_drops(self) -> Path:
        """Table of the rows dropped before the download."""
        return self.work / "plan.drops.arrow"

    def planned(self) -> dict[str, Any] | None:
        """What `save_plan` saved, or None if planning did not come to its end."""
        path = self.work / "plan.json"
        return json.loads(path.read_bytes()) if path.exists() else None

    def save_plan(
        self, plan: Plan, *, rows: Sequence[int], input_rows: int, yields: Sequence[StepYield]
    ) -> None:
        """Declare the planning complete; `rows` are the candidates of each range."""
        write_json(
            self.work / "plan.json",
            {
                "plan": dataclasses.asdict(plan),
                "rows": list(rows),
                "input_rows": input_rows,
                "yields": [dataclasses.asdict(found) for found in yields],
            },
        )

    def add_time(self, stage: str, begun: float, rows: int) -> None:
        """Note what a stage took since a moment (`time.monotonic`), beside earlier runs of it."""
        told = self.timings()
        before = told.get(stage, {"seconds": 0.0, "rows": 0})
        seconds = round(before["seconds"] + time.monotonic() - begun, 3)
        told[stage] = {"seconds": seconds, "rows": before["rows"] + rows}
        write_json(self.work / "timings.json", told)

    def timings(self) -> dict[str, Any]:
        """Stage → its `seconds` and `rows`; what was cut off is not in it."""
        path = self.work / "timings.json"
        return json.loads(path.read_bytes()) if path.exists() else {}

    def clear(self) -> None:
        """Remove what a killed run left half-written, and ranges whose shard was damaged since."""
        for folder in (self.output, self.work):
            remove_partials(folder)
        for folder in self.work.glob("range-*"):
            receipt = self.receipt(int(folder.name.rpartition("-")[2]))
            shard = receipt and receipt.shard
            if not receipt or (shard and not _has_size(folder / shard.path, shard.bytes)):
                shutil.rmtree(folder)

    def empty(self) -> None:
        """Remove all but the lock."""
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def discard(self) -> None:
        """Remove the ledger, once its job is complete or has come to nothing.

        It goes as a whole: of a half-removed one a later run might take parts for its own.
        """
        with contextlib.suppress(FileNotFoundError):
            self.work.rename(self.output / f"{self.work.name}.{uuid.uuid4().hex}.partial")
        remove_partials(self.output)
        with contextlib.suppress(OSError):
            self.output.rmdir()  # only if empty

    def sweep(self) -> None:
        """Remove what is left where a job was killed while it discarded its ledger."""
        for folder in self.output.glob(f"{self.work.name}.*.partial"):
            shutil.rmtree(folder, ignore_errors=True)

    # Ranges.

    def range_path(self, number: int) -> Path:
        """Folder of a range that was done."""
        return self.work / f"range-{number:05d}"

    def keys_path(self, number: int) -> Path:
        """Table of a range's staged rows, in order: row, id, url and the key of their identity."""
        return self.range_path(number) / KEYS

    def drops_path(self, number: int) -> Path:
        """Table of a range's dropped candidates."""
        return self.range_path(number) / DROPPED

    def staged_path(self, number: int) -> Path:
        """Shard of a range's sound samples, before deduplication over the job."""
        return self.range_path(number) / STAGED

    @contextlib.contextmanager
    def draft(self, number: int) -> Iterator[Path]:
        """A folder in which to put what a range becomes; it goes unless `save_receipt` takes it."""
        folder = self.work / f".range-{number:05d}.{uuid.uuid4().hex}.partial"
        folder.mkdir()  # without parents: whoever outlives the job shall not bring its ledger back
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def save_receipt(self, draft: Path, receipt: Receipt) -> None:
        """Declare a range done by what lies in its draft, unless another worker was first."""
        write_json(draft / RECEIPT, dataclasses.asdict(receipt))
        try:
            draft.rename(self.range_path(receipt.number))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def receipt(self, number: int) -> Receipt | None:
        """A range's receipt, if it was done."""
        path = self.range_path(number) / RECEIPT
        if not path.exists():
            return None
        value = json.loads(path.read_bytes())
        shard = Shard(**value["shard"]) if value["shard"] else None
        yields = tuple(StepYield(**found) for found in value["yields"])
        return Receipt(number=number, yields=yields, shard=shard)

    def save_written(self, number: int, shard: Shard) -> None:
        """Declare a final shard written."""
        write_json(self.work / f"written-{number:05d}.json", dataclasses.asdict(shard))

    def written(self, number: int) -> Shard | None:
        """The final shard of a range, if it was written and is still whole."""
        path = self.work / f"written-{number:05d}.json"
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
