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
from etl.filters.base import Step
from etl.filters.clip import ClipSpec
from etl.filters.policy import Bound, Policy, read_bounds
from etl.filters.urls import check_urls
from etl.media.faces import sound_boxes
from etl.runtime.job import Job, run_job
from etl.runtime.options import CaptionOptions, JobOptions
from etl.sources.parquet import SCORES, Laion

_log = logging.getLogger("etl.laion")


@dataclass(frozen=True, kw_only=True)
class Options(CaptionOptions, JobOptions):
    """Download, check, filter and deduplicate a LAION-style list of images and captions.

    Reads parquet with URL and TEXT and, if they are there, sizes and scores, as LAION, COYO-700M
    and DataComp publish them. All scores become columns of the samples. Going on after a kill needs
    only the same command again.

    The defaults are LAION's: similarity 0.28 is LAION-5B's for English (arXiv:2210.08402;
    LAION-400M had 0.3), punsafe 0.5 and pwatermark 0.8 are LAION-aesthetic's
    (github.com/LAION-AI/laion-datasets). COYO-700M publishes scores but was filtered by none of
    these, except unsafe content above 0.5 by either of two models (`punsafe`, `gantman`); its other
    rules (github.com/kakaobrain/coyo-dataset) are --min-side 200, --max-aspect 3, --min-caption 6,
    --min-words 3 and --max-words 256.
    """

    min_similarity: float = 0.28
    """The least published CLIP similarity (ViT-B/32) of image and caption."""
    max_punsafe: float = 0.5
    """The largest published probability of unsafe content."""
    max_pwatermark: float = 0.8
    """The largest published probability of a watermark."""
    minimum: tuple[str, ...] = ()
    """The least of further scores, such as aesthetic=5; rows that lack a score are kept."""
    maximum: tuple[str, ...] = ()
    """The most of further scores, such as gantman=0.5 faces=0; so, too."""
    blur_faces: str | None = None
    """Column of boxes (x0, y0, x1, y1 in parts of the size) to blur, such as DataComp's
    face_bboxes; a row without boxes is dropped."""
    policy: Literal["before", "after"] = "before"
    """When scores decide: before the download, or after. After, every row is downloaded and kept
    with its scores, and etl/refilter.py applies this or another policy to the shards."""

    def steps(self) -> tuple[Step, ...]:
        """What happens before the download, in order."""
        length, *captions = self.caption_steps()
        urls = functools.partial(check_urls, allow_private=self.allow_private_addresses)
        size = functools.partial(
            text.declared_size, minimum=self.min_side, max_aspect=self.max_aspect
        )
        boxes = [Step(name="boxes", operation=sound_boxes)] if self.blur_faces else []
        return (
            Step(name="url", operation=urls),
            *boxes,
            length,
            Step(name="placeholders", operation=text.no_placeholders),
            *captions,
            *([Step(name="policy", operation=self.scores)] if self.policy == "before" else []),
            Step(name="declared size", operation=size),
            Step(name="url dedup", operation=FirstSeen("url", "duplicate_url")),
        )

    @property
    def clip(self) -> ClipSpec | None:
        """See `JobOptions.clip`; what it finds is judged when the other scores are."""
        spec = super().clip
        if spec and self.policy == "after":
            return dataclasses.replace(spec, least=None)
        return spec

    @property
    def scores(self) -> Policy:
        """What the published scores must be."""
        more = read_bounds(self.minimum, self.maximum, SCORES)
        return Policy(
            bounds=(
                Bound(score="similarity", least=self.min_similarity),
                Bound(score="punsafe", most=self.max_punsafe),
                Bound(score="pwatermark", most=self.max_pwatermark),
                *more.bounds,
            )
        )


def run(args: Sequence[str]) -> None:
    """Run the job with the words after the command's name."""
    options = parse(Options, prog="python etl/laion.py", args=args)
    source = Laion(options.input, boxes=options.blur_faces)
    asked = [bound.score for bound in options.scores.bounds]
    missing = [*source.missing, *(name for name in asked if name not in source.scores)]
    if options.policy == "after":
        _log.info("%s: scores judge no row; etl/refilter.py does that", options.output)
    elif missing:
        names = ", ".join(dict.fromkeys(missing))
        _log.warning("%s: no %s; rows are not judged by that", options.input, names)
    run_job(
        Job(
            name="laion",
            source=source,
            before=options.steps(),
            identity="medium",
            options=options,
        )
    )


if __name__ == "__main__":
    main(run)
