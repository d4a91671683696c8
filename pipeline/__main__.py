"""Run `python -m pipeline`."""

import os

import torch

from etl.cli import UserError, main
from model.spec import SpecError

# DeepSpeed looks for an accelerator while it is imported; where there is none it says so on
# stdout, in the midst of what `--json` prints, unless it was told before.
if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pipeline.cli import run

main(run, mistakes=(UserError, SpecError))
