"""Captioned images from archives to shards: `python etl/coco.py --input LIST.json --media ZIP …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/coco.py …`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from etl.cli import UserError, main, parse
from etl.filters import records
from etl.filters.base import Filter
from etl.runtime.corpus import PairOptions, WordingOptions, run_corpus, select_format
from etl.sources.captions import FORMATS, detect_format

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS]


@dataclass(frozen=True, kw_only=True)
class Options(WordingOptions, PairOptions):
    """Read and check captions of images in folders, zip or tar archives.

    COCO Captions, Karpathy's splits of COCO and Flickr30k, AI Challenger, TextCaps, and Visual
    Genome's regions. Every caption is a record of its own; an image is read once for all of them.
    For MM-IT --phrasing or --wordings put an instruction before each caption.
    """

    min_caption: int = 1
    """The minimum characters of a caption."""
    format: FormatName = "auto"
    """The published format of the captions; auto detects it from the file."""
    splits: tuple[str, ...] = ("train", "restval")
    """Which of Karpathy's splits to keep; the others are used for evaluation."""

    def filters(self) -> tuple[Filter, ...]:
        """See `CorpusOptions.filters`."""
        in_splits = functools.partial(records.in_splits, splits=self.splits)
        first, *rest = super().filters()
        return (first, Filter(name="split", function=in_splits), *rest)


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/coco.py", args=args)
    if not options.media:
        raise UserError("--media: want the folder or archive that holds the images")
    corpus, fmt = select_format(options, options.format, FORMATS, detect_format)
    run_corpus("coco", options, corpus, options.in_words(fmt))


if __name__ == "__main__":
    main(run)
