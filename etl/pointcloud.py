"""Captioned point clouds to shards: `python etl/pointcloud.py --input LIST --media DIR …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/pointcloud.py …`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from etl.cli import main, parse
from etl.media.gather import MediaPlan
from etl.media.points import PointsLimits
from etl.runtime.corpus import PairOptions, choose, run_corpus
from etl.sources.base import Format
from etl.sources.clouds import CAP3D, TRIPLETS, guess

FORMATS: Mapping[str, Format] = {"cap3d": CAP3D, "triplets": TRIPLETS}


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """Fetch, check and deduplicate point clouds and their captions.

    Cap3D (csv: uid, caption) and ULIP-like triplets (JSON), the clouds in .npy, .ply, .off or .obj.
    They are kept as they are; of meshes the vertices count.
    """

    format: Literal["auto", "cap3d", "triplets"] = "auto"
    """How the list is published; auto looks at its beginning."""
    min_points: int = 64
    """The fewest points of a cloud."""
    max_points: int = 1 << 24
    """The most points of a cloud."""
    max_bytes: int = 200_000_000
    """The largest body of a download."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("min_points", self.min_points >= 1, "1 or more")
        self._require("max_points", self.max_points >= self.min_points, "at least --min-points")

    @property
    def plan(self) -> MediaPlan:
        """See `CorpusOptions.plan`."""
        limits = PointsLimits(min_points=self.min_points, max_points=self.max_points)
        return dataclasses.replace(super().plan, points=limits)


def run(args: Sequence[str]) -> None:
    """Run the job with the words after the command's name."""
    options = parse(Options, prog="python etl/pointcloud.py", args=args)
    corpus, how = choose(options, options.format, FORMATS, guess)
    run_corpus("pointcloud", options, corpus, how)


if __name__ == "__main__":
    main(run)
