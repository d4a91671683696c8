"""LAION-style lists of image-caption pairs to shards: `python etl/laion.py --input LIST.parquet …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/laion.py …`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from etl.cli import main, parse
from etl.dedup.exact import FirstSeen
from etl.filters import text
from etl.filters.base import Filter
from etl.filters.clip import ClipSpec
from etl.filters.policy import Policy, ScoreBound, read_bounds
from etl.filters.records import readable
from etl.filters.urls import check_urls
from etl.media.faces import valid_boxes
from etl.runtime.job import Job, run_job
from etl.runtime.options import CaptionOptions, JobOptions
from etl.sources.pairs import read_columns
from etl.sources.parquet import SCORES, Laion

_log = logging.getLogger("etl.laion")


@dataclass(frozen=True, kw_only=True)
class Options(CaptionOptions, JobOptions):
    """Download, check, filter and deduplicate a LAION-style list of images and captions.

    Reads parquet with URL and TEXT (or url and caption) and, where published, sizes and scores, as
    LAION, COYO-700M and DataComp have them; a list of captions gives a row each. All scores become
    columns of the samples. To resume a killed job, repeat the same command.

    The defaults are LAION's: similarity 0.28 is LAION-5B's for English (arXiv:2210.08402;
    LAION-400M had 0.3), punsafe 0.5 and pwatermark 0.8 are LAION-aesthetic's
    (github.com/LAION-AI/laion-datasets). COYO-700M publishes these scores but was not filtered by
    them, except for unsafe content above 0.5 by either of two models (`punsafe`, `gantman`); its
    other rules (github.com/kakaobrain/coyo-dataset) are --min-side 200, --max-aspect 3,
    --min-caption 6, --min-words 3 and --max-words 256.
    """

    columns: tuple[str, ...] = ()
    """Which columns to use where they have other names, such as url=image_url caption=alt."""
    min_similarity: float = 0.28
    """The minimum published CLIP similarity (ViT-B/32) of image and caption."""
    max_punsafe: float = 0.5
    """The maximum published probability of unsafe content."""
    max_pwatermark: float = 0.8
    """The maximum published probability of a watermark."""
    minimum: tuple[str, ...] = ()
    """Minimums of further scores, such as aesthetic=5; rows without that score are kept."""
    maximum: tuple[str, ...] = ()
    """Maximums of further scores, such as gantman=0.5 faces=0; rows without it are kept."""
    blur_faces: str | None = None
    """Column of face boxes to blur (x0, y0, x1, y1 as fractions of the image size), such as
    DataComp's face_bboxes; a row without boxes is dropped."""
    policy: Literal["before", "after"] = "before"
    """When to filter by scores: before the download, or after it. After: every row is downloaded
    and kept with its scores, and etl/refilter.py applies this or another policy to the shards."""

    def filters(self) -> tuple[Filter, ...]:
        """The filters before the download, in order."""
        length, *captions = self.caption_filters()
        urls = functools.partial(check_urls, allow_private=self.allow_private_addresses)
        size = functools.partial(
            text.declared_size, minimum=self.min_side, max_aspect=self.max_aspect
        )
        boxes = [Filter(name="boxes", function=valid_boxes)] if self.blur_faces else []
        return (
            Filter(name="record", function=readable),
            Filter(name="url", function=urls),
            *boxes,
            length,
            Filter(name="placeholders", function=text.no_placeholders),
            *captions,
            *([Filter(name="policy", function=self.scores)] if self.policy == "before" else []),
            Filter(name="declared size", function=size),
            Filter(name="url dedup", function=FirstSeen("url", "duplicate_url")),
        )

    @property
    def clip(self) -> ClipSpec | None:
        """See `JobOptions.clip`; its score is filtered together with the published ones."""
        spec = super().clip
        if spec and self.policy == "after":
            return dataclasses.replace(spec, min_score=None)
        return spec

    @property
    def scores(self) -> Policy:
        """The bounds on the published scores."""
        more = read_bounds(self.minimum, self.maximum, SCORES)
        return Policy(
            bounds=(
                ScoreBound(score="similarity", minimum=self.min_similarity),
                ScoreBound(score="punsafe", maximum=self.max_punsafe),
                ScoreBound(score="pwatermark", maximum=self.max_pwatermark),
                *more.bounds,
            )
        )


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/laion.py", args=args)
    columns = read_columns(options.columns, ("url", "caption"))
    source = Laion(options.input, boxes=options.blur_faces, columns=columns)
    bounded = [bound.score for bound in options.scores.bounds]
    missing = [*source.missing, *(name for name in bounded if name not in source.scores)]
    if options.policy == "after":
        _log.info("%s: not filtered by scores; use etl/refilter.py for that", options.output)
    elif missing:
        names = ", ".join(dict.fromkeys(missing))
        _log.warning("%s: no %s; rows are not filtered by it", options.input, names)
    run_job(
        Job(
            name="laion",
            source=source,
            filters=options.filters(),
            identity="medium",
            options=options,
        )
    )


if __name__ == "__main__":
    main(run)
