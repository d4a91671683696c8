"""Planner: seconds and bytes to plan an epoch, and to seek to a step.

    python benchmarks/planner.py [--rows N ...] [--ranks N]

For every number of rows, in a process of its own: lengths like those of LLaVA-1.5's 665K mix in an
Arrow file, as the cache beside the shards holds them, memory-mapped; three sources in a mix; then
every step of an epoch is dealt out to the ranks, packed. Prints a table and as the last line one
JSON object. `idle` is the share of the ranks' time in which they wait for the dearest of a pass.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.data.shuffle import ShuffledStream

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from etl.cli import UserError, main, parse
from pipeline.config.mix import Mix
from pipeline.data.lengths import Lengths
from pipeline.data.mixture import build_sources
from pipeline.data.packing import PackedLayout
from pipeline.data.sampler import BatchSampler, CostModel

PRICES = CostModel(per_token=26e9, per_pair=1.6e6, per_medium={"image": 0.36e12})
"""FLOPs of LLaVA-1.5-7B in MM-IT with adapters: 2 per weight (6.7e9) forward and 2 backward, 32
layers of width 4,096, and a CLIP ViT-L/14 of 577 tokens (0.30e9 weights)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Plan epochs of growing size."""

    rows: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    """Samples of the data."""
    ranks: int = 8
    global_batch: int = 128
    tokens: int = 16_384
    """Of a rank and pass."""
    only: int | None = None
    """Plan so many rows in this process; what the benchmark calls itself with."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What planning so many rows took; times in seconds.

    Args:
        first_step: until the first step is planned, lengths' opening and permutations included.
        epoch: all further steps.
        seek_10, seek_far: planning the step 10, and that in the millionth step's place (the last,
            if there are fewer) in a stream that has begun.
        peak_bytes: what the process took at most beyond what it took before any data.
        passes: of an epoch.
        idle: see above.
    """

    rows: int
    first_step: float
    epoch: float
    seek_10: float
    seek_far: float
    peak_bytes: int
    passes: int
    idle: float


def write_lengths(path: Path, rows: int) -> None:
    """Write the columns of a cache of lengths, a million rows at a time."""
    random = np.random.default_rng(0)
    schema = pa.schema([("tokens", pa.int32()), ("targets", pa.int32()), ("media", pa.uint16())])
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        for first in range(0, rows, 1_000_000):
            count = min(1_000_000, rows - first)
            picture = random.random(count) >= 40_688 / 665_298
            middle, spread = np.where(picture, 150, 1100), np.where(picture, 0.8, 0.7)
            text = np.clip(np.exp(random.normal(np.log(middle), spread)), 20, 1400).astype(np.int32)
            columns = [text + 60 + 576 * picture, text, picture]
            arrays = [
                pa.array(c.astype(f.type.to_pandas_dtype()))
                for c, f in zip(columns, schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def opened(path: Path) -> Lengths:
    """Open the cache as `pipeline.data.lengths` does."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        table = reader.read_all()

    def column(name: str) -> NDArray[np.int64]:
        chunks = [chunk.to_numpy() for chunk in table[name].chunks]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    return Lengths(
        tokens_n=column("tokens"),
        targets_n=column("targets"),
        media_n={"image": column("media")},
        skip_reasons={},
    )


def plan(rows: int, options: Options, path: Path) -> Row:
    """Plan an epoch of so many rows."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    sizes = [rows // 2, rows // 3, rows - rows // 2 - rows // 3]
    mix = Mix(shares=("c=10%",), temperature=1.5)
    schedule = BatchSampler(
        stream=ShuffledStream(sources=build_sources(["a", "b", "c"], sizes, mix), seed=0, epochs=2),
        global_batch=options.global_batch,
        layout=PackedLayout(max_tokens=options.tokens, max_media=4 * options.tokens // 2048),
        lengths=opened(path),
        cost_model=PRICES,
    )
    schedule.step(0, options.ranks)
    first_step = time.perf_counter() - started
    steps = schedule.stream.samples_per_epoch // options.global_batch
    passes, ideal, real = 0, 0.0, 0.0
    started = time.perf_counter()
    for step in range(1, steps):
        turns = schedule.step(step, options.ranks)
        passes += len(turns)
        if step % 97 == 0:
            one, all_ = _costs(schedule, turns)
            ideal, real = ideal + one, real + all_
    epoch = time.perf_counter() - started
    return Row(
        rows=rows,
        first_step=first_step,
        epoch=epoch,
        seek_10=_seek(schedule, 10, options.ranks),
        seek_far=_seek(schedule, min(1_000_000, steps - 1), options.ranks),
        peak_bytes=1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
        passes=passes,
        idle=1 - ideal / real if real else 0.0,
    )


def _seek(schedule: BatchSampler, step: int, ranks: int) -> float:
    started = time.perf_counter()
    schedule.step(step, ranks)
    return time.perf_counter() - started


def _costs(schedule: BatchSampler, turns: list[list[list[object]]]) -> tuple[float, float]:
    """Return the ranks' mean cost of a step, and what the dearest rank of each pass makes of it."""
    ideal = real = 0.0
    assert schedule.lengths is not None
    for turn in turns:
        phases = []
        for chosen in turn:
            rows = np.array([place.row for place in chosen], np.int64)  # type: ignore[attr-defined]
            tokens = schedule.lengths.tokens_n[rows].astype(float)
            thinking = (PRICES.per_token * tokens + PRICES.per_pair * tokens**2 / 2).sum()
            encoding = PRICES.per_medium["image"] * schedule.lengths.media_n["image"][rows].sum()
            phases.append((encoding, thinking))
        ideal += sum(map(sum, phases)) / len(phases)
        real += sum(max(phase) for phase in zip(*phases, strict=True))
    return ideal, real


def table(rows: list[Row]) -> Table:
    """Return the rows as a table."""
    names = ("rows", "first step, s", "epoch, s", "s per 10⁶", "MB", "bytes per row")
    shown = Table(*names, "seek to 10, ms", "seek far, ms", "idle")
    for row in rows:
        shown.add_row(
            f"{row.rows:,}",
            f"{row.first_step:.2f}",
            f"{row.epoch:.1f}",
            f"{row.epoch / row.rows * 1e6:.1f}",
            f"{row.peak_bytes / 1e6:.0f}",
            f"{row.peak_bytes / row.rows:.0f}",
            f"{1000 * row.seek_10:.2f}",
            f"{1000 * row.seek_far:.2f}",
            f"{row.idle:.1%}",
        )
    return shown


def run(args: list[str]) -> None:
    """Plan each size in a process of its own."""
    options = parse(Options, prog="python benchmarks/planner.py", args=args)
    if options.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lengths.arrow"
            write_lengths(path, options.only)
            sys.stdout.write(json.dumps(asdict(plan(options.only, options, path))) + "\n")
        return
    rows = []
    for number in options.rows:
        words = ["--only", number, "--ranks", options.ranks, "--tokens", options.tokens]
        words += ["--global-batch", options.global_batch]
        command = [sys.executable, __file__, *map(str, words)]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE)
        if done.returncode:
            raise UserError(f"{number} rows: ended with {done.returncode}")
        rows.append(Row(**json.loads(done.stdout)))
    Console(stderr=True).print(table(rows))
    sys.stdout.write(json.dumps({"rows": [asdict(row) for row in rows]}) + "\n")


if __name__ == "__main__":
    main(run)
