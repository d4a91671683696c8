"""Run `python -m pipeline`."""

from etl.cli import UserError, main
from model.spec import SpecError
from pipeline.cli import run

if __name__ == "__main__":
    main(run, mistakes=(UserError, SpecError))
