"""Run `python -m pipeline.quickstart`."""

from etl.cli import main
from pipeline.quickstart.quickstart import run

if __name__ == "__main__":
    main(run)
