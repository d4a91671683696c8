"""The backward pass of attention over many short samples packed in a row: split against slices.

    python benchmarks/packed_backward.py [--samples N] [--length N]

`x[:, :, a:b]` per sample has a gradient as long as the whole row, so the backward pass of n samples
takes time in proportion to n²; the gradient of `x.split(...)` is written once. Gradients must be
equal, which is checked. Prints a table and as the last line one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from etl.cli import main, parse
from model.packing import attend_by_sample


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the backward passes of an attention layer, in milliseconds on one thread."""

    samples: int = 128
    """Samples in the row."""
    length: int = 32
    """Tokens of a sample."""
    heads: int = 16
    width: int = 64
    """Of a head."""
    repeats: int = 5
    """Passes of which the median counts."""


class _Attention(nn.Module):
    is_causal = True


def _slices(states: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Return the attention (b, t, h, c) of samples that are sliced out of the row."""
    attended = [
        sdpa_attention_forward(_Attention(), *(x[:, :, a:b] for x in states), None)[0]
        for a, b in pairwise(starts)
    ]
    return torch.cat(attended, dim=1)


def _split(states: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    return attend_by_sample(_Attention(), *states, None, tuple(starts))[0]


def _measure(
    attend: Callable[[Sequence[Tensor], Sequence[int]], Tensor], options: Options
) -> tuple[float, list[Tensor]]:
    """Return the median milliseconds of a backward pass, and the gradients."""
    torch.manual_seed(0)
    positions = options.samples * options.length
    shape = (1, options.heads, positions, options.width)
    states = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    starts = range(0, positions + 1, options.length)
    seconds = []
    for _ in range(options.repeats):
        for state in states:
            state.grad = None
        loss = attend(states, starts).square().sum()
        started = time.perf_counter()
        loss.backward()
        seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds), [state.grad for state in states if state.grad is not None]


def run(args: Sequence[str]) -> int:
    """Run the comparison; returns the exit code."""
    options = parse(Options, prog="python benchmarks/packed_backward.py", args=args)
    torch.set_num_threads(1)
    ours, gradients = _measure(_split, options)
    slices, expected = _measure(_slices, options)
    for own, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    table = Table("backward pass", "ms", title=f"{options.samples} samples of {options.length}")
    table.add_row("split", f"{ours:.1f}")
    table.add_row("slices", f"{slices:.1f}")
    Console().print(table)
    result = {"split_ms": ours, "slices_ms": slices, "ratio": slices / ours}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    main(run)
