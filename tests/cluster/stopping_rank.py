"""One rank that trains as `python -m pipeline` does and gets SIGTERM in the midst of a validation.

    STOP_AFTER="STEP BATCH" python -m tests.cluster.stopping_rank pt …

The signal comes in a batch, counted from 0 through both views, of the validation after a step; to
one rank only, the last.
"""

import os
import signal
from collections.abc import Callable
from typing import Any
from unittest import mock

from etl.cli import UserError, main
from model.spec import SpecError
from pipeline.cli import run
from pipeline.data.loader import MicroBatch
from pipeline.train.step_sync import StepSync
from pipeline.train.validation import Validation

validate = Validation.run

Sync = Callable[[list[MicroBatch]], StepSync]


def stopped(self: Validation, engine: Any, step: int, sync: Sync, enter_phase: Any) -> Any:
    after, batch = map(int, os.environ["STOP_AFTER"].split())
    batches = 0

    def counted(items: list[MicroBatch]) -> StepSync:
        nonlocal batches
        if (step, batches) == (after, batch) and is_last_rank():
            os.kill(os.getpid(), signal.SIGTERM)
        batches += 1
        return sync(items)

    return validate(self, engine, step, counted, enter_phase)


def is_last_rank() -> bool:
    return int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1


if __name__ == "__main__":
    with mock.patch.object(Validation, "run", stopped):
        main(run, mistakes=(UserError, SpecError))
