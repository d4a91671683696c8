"""The published benchmarks, one file each, and the table of their names (docs/evaluation.md)."""

from __future__ import annotations

from difflib import get_close_matches

from etl.cli import UserError
from pipeline.evaluate.benchmark import Benchmark

BENCHMARKS: tuple[Benchmark, ...] = ()
"""All benchmarks of `evaluate --benchmark` and `score`."""


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark by name.

    Raises:
        UserError: there is none of that name.
    """
    by_name = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    if name in by_name:
        return by_name[name]
    near = get_close_matches(name, by_name, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"want one of {', '.join(by_name)}"
    raise UserError(f"unknown benchmark {name!r}: {hint}")
