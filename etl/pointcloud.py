"""Captioned point clouds to shards: `python etl/pointcloud.py --input LIST --media DIR …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/pointcloud.py …`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from etl.cli import main, parse
from etl.media.gather import MediaOptions
from etl.media.points import PointsLimits
from etl.runtime.corpus import PairOptions, run_corpus, select_format
from etl.sources.clouds import FORMATS, detect_format

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS]


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """Fetch, check and deduplicate point clouds and their captions.

    Cap3D (csv: uid, caption) and ULIP-like triplets (JSON), with clouds in .npy, .ply, .off or
    .obj. Files are stored unchanged; the points of a mesh are its vertices.
    """

    format: FormatName = "auto"
    """The published format of the list; auto detects it from the first lines."""
    min_points: int = 64
    """The minimum points of a cloud."""
    max_points: int = 1 << 24
    """The maximum points of a cloud."""
    max_bytes: int = 200_000_000
    """The maximum size of a response body."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("min_points", self.min_points >= 1, "1 or more")
        self._require("max_points", self.max_points >= self.min_points, "at least --min-points")

    @property
    def media_options(self) -> MediaOptions:
        """See `CorpusOptions.media_options`."""
        limits = PointsLimits(min_points=self.min_points, max_points=self.max_points)
        return dataclasses.replace(super().media_options, points=limits)


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/pointcloud.py", args=args)
    corpus, fmt = select_format(options, options.format, FORMATS, detect_format)
    run_corpus("pointcloud", options, corpus, fmt)


if __name__ == "__main__":
    main(run)
