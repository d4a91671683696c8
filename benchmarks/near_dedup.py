"""What the search for near-duplicate images costs as a corpus grows.

    python benchmarks/near_dedup.py [--sizes N …] [--distance D] [--brute N]

`etl.dedup.images.NearImages` filters a table of as many rows as stated, as it does for a job with
`--image-dedup-distance`. Of the rows 22.4 % repeat an earlier picture (COYO-700M has 746,972,269
pairs and 579,679,137 distinct perceptual hashes), two in three of these with equal hashes and the
others with two or four bits turned; what is repeated is likely to be so again, as on the web. One
row in a thousand is one constant picture. Each size has its own process, and `peak` is what that
held at most beyond the table. The exponent is that of the growth of CPU seconds from one size to
the next: 1 is linear, 2 quadratic. "Each with each" compares all pairs, of fewer rows.
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

sys.path[0] = str(Path(__file__).parents[1])  # the house, not the benchmark, is `etl`

from etl.dedup.images import NearImages  # noqa: E402

REPEATED = 1 - 579_679_137 / 746_972_269
CONSTANT = 0.001
EQUAL = 2 / 3


def hashes(rows: int, seed: int) -> NDArray[np.uint64]:
    """As many hashes as stated, with repetitions at the rate of a web corpus."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 1 << 63, rows, dtype=np.uint64) << np.uint64(1)
    again = np.flatnonzero(rng.random(rows) < REPEATED)
    again = again[again > 0]
    # The square makes few rows the source of many.
    sources = (rng.random(len(again)) ** 2 * again).astype(np.int64)
    copies = found[sources]
    for _ in range(2):
        turned = rng.random(len(copies)) < (1 - EQUAL) / 2
        for _ in range(2):
            bit = np.uint64(1) << rng.integers(0, 64, len(copies), dtype=np.uint64)
            copies = np.where(turned, copies ^ bit, copies)
    found[again] = copies
    found[rng.random(rows) < CONSTANT] = np.uint64(0x8000000000000000)
    return found


def table(values: NDArray[np.uint64]) -> pa.Table:
    """The columns that the step needs."""
    rows = len(values)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), pa.int32()), pa.array(values))
    keys = pa.array(np.zeros(rows, "S1").astype(str))
    return pa.table({"row": np.arange(rows), "key": keys, "phash": lists})


def measure(rows: int, distance: int, seed: int = 0) -> dict[str, Any]:
    """Seconds, peak bytes and how many rows went, of one size."""
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
    """Each with each: the seconds of finding all near pairs."""
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


def alone(function: Any, *values: int) -> dict[str, Any]:  # noqa: ANN401 - any function above
    """Call a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *values).result()


def exponents(found: list[dict[str, Any]]) -> list[float]:
    """How CPU seconds grow from each size to the next."""
    return [
        round(
            math.log(after["cpu_seconds"] / max(before["cpu_seconds"], 0.01))
            / math.log(after["rows"] / before["rows"]),
            2,
        )
        for before, after in itertools.pairwise(found)
    ]


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--distance", type=int, default=4)
    parser.add_argument("--brute", type=int, nargs="*", default=[10**4, 10**5])
    options = parser.parse_args()
    ours = [alone(measure, rows, options.distance) for rows in sorted(options.sizes)]
    force = [alone(brute, rows, options.distance) for rows in sorted(options.brute)]
    results = {
        "distance": options.distance,
        "index": ours,
        "index_exponents": exponents(ours),
        "brute": force,
        "brute_exponents": exponents(force),
    }
    shown = Table(title=f"near duplicates within {options.distance} of 64 bits")
    for name in ("", "rows", "dropped", "s", "CPU s", "peak MB", "bytes/hash", "exponent"):
        shown.add_column(name, justify="right")
    growth = ["", *map(str, results["index_exponents"])]
    for one, grown in zip(ours, growth, strict=True):
        cells = [one["rows"], one["dropped"], one["seconds"], one["cpu_seconds"]]
        cells += [one["peak_bytes"] // 10**6, one["bytes_per_hash"]]
        shown.add_row("index", *(f"{cell:,}" for cell in cells), grown)
    growth = ["", *map(str, results["brute_exponents"])]
    for one, grown in zip(force, growth, strict=False):
        cells = [f"{one[name]:,}" for name in ("rows", "seconds", "cpu_seconds")]
        shown.add_row("pairs", cells[0], "", *cells[1:], "", "", grown)
    Console().print(shown)
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
