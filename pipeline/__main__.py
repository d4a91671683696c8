"""Run `python -m pipeline`."""

import os
import signal

# Ctrl-C during the imports, which take seconds, ends the process without their traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from etl.cli import UserError, main
from model.spec import SpecError

# DeepSpeed looks for an accelerator on import. Where there is none it prints that to stdout, amid
# what `--json` prints, unless the accelerator is set.
if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pipeline.cli import run

if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__main__":
    main(run, mistakes=(UserError, SpecError))
