"""Run `python -m pipeline`."""

import signal

# Ctrl-C during the imports, which take seconds, ends the process without their traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from etl.cli import UserError, main
from model.spec import SpecError
from pipeline.cli import run

if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__main__":
    main(run, mistakes=(UserError, SpecError))
