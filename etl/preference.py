"""Preferences with written feedback to shards: `python etl/preference.py --input LIST.json …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/preference.py …`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from etl.cli import main, parse
from etl.runtime.corpus import CorpusOptions, run_corpus
from etl.sources.preferences import FORMATS

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[(*FORMATS,)]


@dataclass(frozen=True, kw_only=True)
class Options(CorpusOptions):
    """Check preferences and feedback, and fetch their images.

    The chosen answer is the last turn; the other one is `rejected`, its critique `feedback`. Reads
    JSON, lines of JSON, and parquet with embedded images.
    """

    format: FormatName = "rlhf-v"
    """The published format of the records; rlhf-v reads any list of image, question, chosen and
    rejected."""


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/preference.py", args=args)
    run_corpus("preference", options, options.format, FORMATS[options.format])


if __name__ == "__main__":
    main(run)
