"""One rank that trains as `python -m pipeline` does and writes down what its loader hands out.

    RECORD=FILE python -m tests.cluster.recording_rank pt …

Each line of FILE: the step, the rank, and the ids of the samples of each micro-batch.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.cli import run
from pipeline.data.loader import MicroBatch
from pipeline.train import train

micro_batches = train.micro_batches


def recorded(*args: Any, steps: range, rank: int, **more: Any) -> Iterator[list[MicroBatch]]:
    handed_out = micro_batches(*args, steps=steps, rank=rank, **more)
    for step, items in zip(steps, handed_out, strict=False):
        entry = {"step": step + 1, "rank": rank, "ids": [list(item.ids) for item in items]}
        with Path(os.environ["RECORD"]).open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        yield items


if __name__ == "__main__":
    train.micro_batches = recorded
    sys.exit(run(sys.argv[1:]))
