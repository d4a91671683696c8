"""Run `python -m pipeline`."""

import os

import torch

from etl.cli import UserError, main
from model.spec import SpecError

# DeepSpeed looks for an accelerator on import. Where there is none it prints that to stdout, amid
# what `--json` prints, unless the accelerator is set.
if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pipeline.cli import run

if __name__ == "__main__":
    main(run, mistakes=(UserError, SpecError))
