"""Run `python -m pipeline.quickstart`."""

from etl.cli import main
from pipeline.quickstart.quickstart import run

main(run)
