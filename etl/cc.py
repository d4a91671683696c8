"""Conceptual Captions and kin to shards: `python etl/cc.py --input LIST.tsv …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/cc.py …`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from etl.cli import main, parse
from etl.runtime.corpus import PairOptions, choose, run_corpus
from etl.sources.base import Format
from etl.sources.conceptual import CC3M, CC12M, CC595K, SBU, WUKONG, guess

FORMATS: Mapping[str, Format] = {
    "cc3m": CC3M,
    "cc12m": CC12M,
    "sbu": SBU,
    "wukong": WUKONG,
    "cc595k": CC595K,
}


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """Download, check and deduplicate lists of images and captions.

    CC3M (tsv: caption, URL), CC12M (tsv: URL, caption), SBU (JSON of parallel arrays), Wukong (csv:
    url, caption), and CC595K's chat.json, whose images are files: give --media images.zip.
    """

    format: Literal["auto", "cc3m", "cc12m", "sbu", "wukong", "cc595k"] = "auto"
    """How the list is published; auto looks at its beginning."""


def run(args: Sequence[str]) -> None:
    """Run the job with the words after the command's name."""
    options = parse(Options, prog="python etl/cc.py", args=args)
    corpus, how = choose(options, options.format, FORMATS, guess)
    run_corpus("cc", options, corpus, how, identity="record" if corpus == "cc595k" else "medium")


if __name__ == "__main__":
    main(run)
