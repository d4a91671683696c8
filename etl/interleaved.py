"""Documents of text and images to shards: `python etl/interleaved.py --input DOCS.jsonl …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/interleaved.py …`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from etl.cli import main, parse
from etl.filters import records
from etl.filters.base import Step
from etl.media.gather import Lost, MediaPlan
from etl.runtime.corpus import CorpusOptions, choose, run_corpus
from etl.sources.documents import formats, guess


@dataclass(frozen=True, kw_only=True)
class Options(CorpusOptions):
    """Fetch the images of documents, check them, and keep them where they stand in the text.

    MMC4 (lines of JSON) and OBELICS (parquet, or lines of JSON). A document that loses an image
    loses its placeholder, too, and says so in its lineage (`lost_media`); with its last image it is
    dropped, for the reason of the first one lost.
    """

    format: Literal["auto", "mmc4", "obelics"] = "auto"
    """How the documents are published; auto looks at their beginning."""
    min_similarity: float = 0.24
    """The least published CLIP similarity of an image and its sentence (MMC4's matched_sim); the
    default is OpenFlamingo's (arXiv:2308.01390, §3.2)."""
    max_images: int = 30
    """The most images of a document; OBELICS keeps documents of up to 30 (arXiv:2306.16527)."""
    lost_images: Lost = "forget"
    """What becomes of a document that loses an image: forget that image, or drop the document."""

    @property
    def plan(self) -> MediaPlan:
        """See `CorpusOptions.plan`."""
        return dataclasses.replace(super().plan, lost=self.lost_images)

    def steps(self) -> tuple[Step, ...]:
        """See `CorpusOptions.steps`."""
        few = functools.partial(records.media_count, minimum=1, maximum=self.max_images)
        first, *rest = super().steps()
        return (first, Step(name="images", operation=few), *rest)


def run(args: Sequence[str]) -> None:
    """Run the job with the words after the command's name."""
    options = parse(Options, prog="python etl/interleaved.py", args=args)
    corpus, how = choose(options, options.format, formats(options.min_similarity), guess)
    run_corpus("interleaved", options, corpus, how)


if __name__ == "__main__":
    main(run)
