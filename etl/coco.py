"""Captioned pictures from archives to shards: `python etl/coco.py --input LIST.json --media ZIP …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/coco.py …`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from etl.cli import UserError, main, parse
from etl.filters import records
from etl.filters.base import Step
from etl.runtime.corpus import PairOptions, choose, run_corpus
from etl.sources.base import Format
from etl.sources.captions import AI_CHALLENGER, COCO, KARPATHY, TEXT_CAPS, VISUAL_GENOME, guess

FORMATS: Mapping[str, Format] = {
    "coco": COCO,
    "karpathy": KARPATHY,
    "ai-challenger": AI_CHALLENGER,
    "text-caps": TEXT_CAPS,
    "visual-genome": VISUAL_GENOME,
}


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """Read captions whose pictures lie in folders, zip or tar archives, and check these.

    COCO Captions, Karpathy's splits of COCO and Flickr30k, AI Challenger, TextCaps, and Visual
    Genome's regions. Every caption is a record of its own; a picture is read once for all of its.
    """

    min_caption: int = 1
    """The fewest characters of a caption."""
    format: Literal["auto", "coco", "karpathy", "ai-challenger", "text-caps", "visual-genome"] = (
        "auto"
    )
    """How the captions are published; auto looks at the file."""
    splits: tuple[str, ...] = ("train", "restval")
    """Of Karpathy's splits, those to take; the others are what the field evaluates on."""

    def steps(self) -> tuple[Step, ...]:
        """See `CorpusOptions.steps`."""
        wanted = functools.partial(records.in_splits, splits=self.splits)
        first, *rest = super().steps()
        return (first, Step(name="split", operation=wanted), *rest)


def run(args: Sequence[str]) -> None:
    """Run the job with the words after the command's name."""
    options = parse(Options, prog="python etl/coco.py", args=args)
    if not options.media:
        raise UserError("--media: want the folder or archive in which the pictures lie")
    corpus, how = choose(options, options.format, FORMATS, guess)
    run_corpus("coco", options, corpus, how)


if __name__ == "__main__":
    main(run)
