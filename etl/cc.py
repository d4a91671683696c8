"""Conceptual Captions and similar lists to shards: `python etl/cc.py --input LIST.tsv …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/cc.py …`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from etl.cli import main, parse
from etl.runtime.corpus import PairOptions, run_corpus, select_format
from etl.sources.conceptual import FORMATS, detect_format

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS]


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """Download, check and deduplicate lists of images and captions.

    CC3M (tsv: caption, URL), CC12M (tsv: URL, caption), SBU (JSON of parallel arrays), Wukong (csv:
    url, caption), CC595K's chat.json, whose images are files: give --media images.zip, and plain
    lists of URLs, whose images are kept without a text.
    """

    format: FormatName = "auto"
    """The published format of the list; auto detects it from the first lines."""


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/cc.py", args=args)
    corpus, fmt = select_format(options, options.format, FORMATS, detect_format)
    run_corpus("cc", options, corpus, fmt)


if __name__ == "__main__":
    main(run)
