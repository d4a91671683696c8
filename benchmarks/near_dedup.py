"""The cost of finding near-duplicate images as a corpus grows.

    python benchmarks/near_dedup.py [--sizes N …] [--distance D] [--brute N]

`etl.dedup.images.NearImages` filters a table of so many rows, as `--image-dedup-distance` does in a
job. 22.4 % of the rows repeat an earlier image (COYO-700M has 746,972,269 pairs and 579,679,137
distinct perceptual hashes), two thirds of them with equal hashes and the others with two or four
bits flipped; an image that is repeated is likely to be repeated again, as on the web. One row in a
thousand is the same constant image. Each size runs in its own process, and `peak` is its memory
beyond the table. The exponent is that of the growth of CPU seconds from one size to the next: 1 is
linear, 2 quadratic. "Brute force" compares all pairs, of fewer rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path[0] = str(Path(__file__).parents[1])  # so that `etl` is the package, not the benchmark

from etl.dedup.images import NearImages  # noqa: E402

REPEATED = 1 - 579_679_137 / 746_972_269
CONSTANT = 0.001
EQUAL = 2 / 3


def hashes(rows: int, seed: int) -> NDArray[np.uint64]:
    """Return perceptual hashes, with repetitions at the rate of a web corpus."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 1 << 63, rows, dtype=np.uint64) << np.uint64(1)
    repeats = np.flatnonzero(rng.random(rows) < REPEATED)
    repeats = repeats[repeats > 0]
    # The square makes a few rows the source of many repeats.
    sources = (rng.random(len(repeats)) ** 2 * repeats).astype(np.int64)
    copies = found[sources]
    for _ in range(2):
        flipped = rng.random(len(copies)) < (1 - EQUAL) / 2
        for _ in range(2):
            bit = np.uint64(1) << rng.integers(0, 64, len(copies), dtype=np.uint64)
            copies = np.where(flipped, copies ^ bit, copies)
    found[repeats] = copies
    found[rng.random(rows) < CONSTANT] = np.uint64(0x8000000000000000)
    return found


def table(values: NDArray[np.uint64]) -> pa.Table:
    """Return the columns that the filter needs."""
    rows = len(values)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), pa.int32()), pa.array(values))
    keys = pa.array(np.zeros(rows, "S1").astype(str))
    return pa.table({"row": np.arange(rows), "key": keys, "phash": lists})


def measure(rows: int, distance: int, seed: int = 0) -> dict[str, Any]:
    """Return seconds, peak bytes and dropped rows for one size."""
    found = table(hashes(rows, seed))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.perf_counter(), time.process_time()
    result = NearImages(distance=distance, identity="medium")(found)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    dropped = sum(reason is not None for reason in result.reasons)
    return {
        "rows": rows,
        "dropped": dropped,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_bytes": peak,
        "bytes_per_hash": round(peak / rows, 1),
    }


def brute(rows: int, distance: int, seed: int = 0) -> dict[str, Any]:
    """Return the seconds of finding all near pairs by brute force."""
    values = hashes(rows, seed)
    started, used = time.perf_counter(), time.process_time()
    pairs = 0
    for row in range(1, rows):
        pairs += int((np.bitwise_count(values[:row] ^ values[row]) <= distance).sum())
    cpu = time.process_time() - used
    seconds = time.perf_counter() - started
    return {
        "rows": rows,
        "pairs": pairs,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
    }


def in_process(function: Any, *values: int) -> dict[str, Any]:  # noqa: ANN401 - any function above
    """Call a function in its own process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *values).result()


def exponents(found: list[dict[str, Any]]) -> list[float]:
    """Return the exponents of the growth of CPU seconds from each size to the next."""
    return [
        round(
            math.log(after["cpu_seconds"] / max(before["cpu_seconds"], 0.01))
            / math.log(after["rows"] / before["rows"]),
            2,
        )
        for before, after in itertools.pairwise(found)
    ]


def main() -> None:
    """Print a table and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--distance", type=int, default=4)
    parser.add_argument("--brute", type=int, nargs="*", default=[10**4, 10**5])
    options = parser.parse_args()
    ours = [in_process(measure, rows, options.distance) for rows in sorted(options.sizes)]
    force = [in_process(brute, rows, options.distance) for rows in sorted(options.brute)]
    result = {
        "distance": options.distance,
        "index": ours,
        "index_exponents": exponents(ours),
        "brute": force,
        "brute_exponents": exponents(force),
    }
    shown = Table(title=f"near duplicates within {options.distance} of 64 bits")
    for name in ("", "rows", "dropped", "s", "CPU s", "peak MB", "bytes/hash", "exponent"):
        shown.add_column(name, justify="right")
    growth = ["", *map(str, result["index_exponents"])]
    for one, grown in zip(ours, growth, strict=True):
        cells = [one["rows"], one["dropped"], one["seconds"], one["cpu_seconds"]]
        cells += [one["peak_bytes"] // 10**6, one["bytes_per_hash"]]
        shown.add_row("index", *(f"{cell:,}" for cell in cells), grown)
    growth = ["", *map(str, result["brute_exponents"])]
    for one, grown in zip(force, growth, strict=False):
        cells = [f"{one[name]:,}" for name in ("rows", "seconds", "cpu_seconds")]
        shown.add_row("brute force", cells[0], "", *cells[1:], "", "", grown)
    Console().print(shown)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
