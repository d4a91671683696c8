"""The published benchmarks, one file or family each, and the table of their names."""

from __future__ import annotations

from difflib import get_close_matches

from etl.cli import UserError
from pipeline.evaluate.benchmark import Benchmark
from pipeline.evaluate.benchmarks.gqa import GQA
from pipeline.evaluate.benchmarks.hateful_memes import HATEFUL_MEMES
from pipeline.evaluate.benchmarks.iconqa import ICONQA
from pipeline.evaluate.benchmarks.llava_bench import LLAVA_BENCH
from pipeline.evaluate.benchmarks.mmbench import MMBENCH, MMBENCH_CN
from pipeline.evaluate.benchmarks.mme import MME
from pipeline.evaluate.benchmarks.mmvet import MMVET
from pipeline.evaluate.benchmarks.pope import POPE
from pipeline.evaluate.benchmarks.qbench import QBENCH
from pipeline.evaluate.benchmarks.scienceqa import SCIENCEQA
from pipeline.evaluate.benchmarks.seedbench import SEEDBENCH
from pipeline.evaluate.benchmarks.textvqa import TEXTVQA
from pipeline.evaluate.benchmarks.vizwiz import VIZWIZ
from pipeline.evaluate.benchmarks.vqa import OKVQA, VQAV2
from pipeline.evaluate.benchmarks.vsr import VSR

BENCHMARKS: tuple[Benchmark, ...] = (
    *(OKVQA, ICONQA, VQAV2, GQA, VIZWIZ, SCIENCEQA, TEXTVQA, POPE, MME, MMBENCH, MMBENCH_CN),
    *(SEEDBENCH, LLAVA_BENCH, MMVET, QBENCH, HATEFUL_MEMES, VSR),
)
"""All benchmarks of `evaluate --benchmark` and `score`, in the order of the survey's Table 2."""


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
