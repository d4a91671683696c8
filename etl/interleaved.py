"""Interleaved documents of text and images to shards: `python etl/interleaved.py --input DOCS …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/interleaved.py …`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from etl.cli import main, parse
from etl.filters import records
from etl.filters.base import Filter
from etl.media.gather import MediaOptions, OnLost
from etl.runtime.corpus import CorpusOptions, run_corpus, select_format
from etl.sources.documents import FORMATS, MIN_SIMILARITY, detect_format, formats

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS]


@dataclass(frozen=True, kw_only=True)
class Options(CorpusOptions):
    """Fetch and check the images of documents and keep them at their positions in the text.

    MMC4 (lines of JSON) and OBELICS (parquet, or lines of JSON). If an image fails, its placeholder
    is removed and the document's lineage says so (`lost_media`); if all images fail, the document
    is dropped, for the reason of the first one.
    """

    format: FormatName = "auto"
    """The published format of the documents; auto detects it from the first lines."""
    min_similarity: float = MIN_SIMILARITY
    """The minimum published CLIP similarity of an image and its sentence (MMC4's matched_sim); the
    default is OpenFlamingo's (arXiv:2308.01390, §3.2)."""
    max_images: int = 30
    """The maximum images of a document; OBELICS keeps documents of up to 30 (arXiv:2306.16527)."""
    lost_images: OnLost = "remove"
    """When an image fails: remove that image, or drop the whole document."""

    @property
    def media_options(self) -> MediaOptions:
        """See `CorpusOptions.media_options`."""
        return dataclasses.replace(super().media_options, on_lost=self.lost_images)

    def filters(self) -> tuple[Filter, ...]:
        """See `CorpusOptions.filters`."""
        count = functools.partial(records.media_count, minimum=1, maximum=self.max_images)
        first, *rest = super().filters()
        return (first, Filter(name="images", function=count), *rest)


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/interleaved.py", args=args)
    available = formats(options.min_similarity)
    corpus, fmt = select_format(options, options.format, available, detect_format)
    run_corpus("interleaved", options, corpus, fmt)


if __name__ == "__main__":
    main(run)
