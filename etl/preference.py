"""Preferences with written feedback to shards: `python etl/preference.py --input LIST.json …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/preference.py …`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from etl.cli import main, parse
from etl.runtime.corpus import CorpusOptions, run_corpus
from etl.sources.base import Format
from etl.sources.preferences import DRESS, LLAVA_RLHF, RLHF_V, VLFEEDBACK, VLGUARD

FORMATS: Mapping[str, Format] = {
    "rlhf-v": RLHF_V,
    "llava-rlhf": LLAVA_RLHF,
    "dress": DRESS,
    "vlfeedback": VLFEEDBACK,
    "vlguard": VLGUARD,
}


@dataclass(frozen=True, kw_only=True)
class Options(CorpusOptions):
    """Check preferences and feedback, and fetch their pictures.

    The better answer ends the turns; the other one is `rejected`, what was said of it `feedback`.
    Reads JSON, lines of JSON, and parquet with the pictures in it.
    """

    format: Literal["rlhf-v", "llava-rlhf", "dress", "vlfeedback", "vlguard"] = "rlhf-v"
    """Whose fields the records have; rlhf-v reads any image, question, chosen and rejected."""


def run(args: Sequence[str]) -> None:
    """Run the job with the words after the command's name."""
    options = parse(Options, prog="python etl/preference.py", args=args)
    run_corpus("preference", options, options.format, FORMATS[options.format])


if __name__ == "__main__":
    main(run)
