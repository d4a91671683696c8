"""Captioned videos to shards: `python etl/webvid.py --input LIST.csv …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/webvid.py …`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from etl.cli import main, parse
from etl.filters import records
from etl.filters.base import Step
from etl.media.gather import MediaPlan
from etl.media.video import VideoLimits
from etl.runtime.corpus import PairOptions, choose, run_corpus
from etl.sources.base import Format
from etl.sources.videos import MSR_VTT, WEBVID, guess

FORMATS: Mapping[str, Format] = {"webvid": WEBVID, "msr-vtt": MSR_VTT}


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """Download, check and deduplicate videos and their captions.

    WebVid (csv: videoid, contentUrl, duration, page_dir, name) and MSR-VTT (JSON of videos and
    sentences, the clips among --media). Of each video a few frames are kept, or all of it; its
    duration and motion (see --min-motion) become scores.
    """

    format: Literal["auto", "webvid", "msr-vtt"] = "auto"
    """How the list is published; auto looks at its beginning."""
    frames: int = 5
    """Uniformly sampled frames to keep of each video (the survey's five), as a video of JPEGs that
    lasts as long; 0 keeps videos as they are."""
    min_seconds: float = 0.5
    """The least duration of a video."""
    max_seconds: float = 600.0
    """The largest duration of a video."""
    min_frames: int = 1
    """The fewest frames of a video."""
    max_frames: int = 1 << 18
    """The most frames of a video."""
    min_motion: float = 0.25
    """The least change between the frames looked at, in grey levels of 255; a still is no video."""
    max_bytes: int = 200_000_000
    """The largest body of a download."""
    timeout: float = 30.0
    """Seconds to wait for a server's next packet; a whole answer has three times as long."""
    rows_per_shard: int = 256
    """Input rows of one planned range, which becomes one shard and is the unit of going on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("frames", self.frames >= 0, "0 or more")
        self._require("max_seconds", self.max_seconds > self.min_seconds, "more than --min-seconds")
        self._require("max_frames", self.max_frames >= self.min_frames, "--min-frames or more")

    @property
    def plan(self) -> MediaPlan:
        """See `CorpusOptions.plan`."""
        limits = VideoLimits(
            min_side=self.min_side,
            max_pixels=self.max_pixels,
            min_frames=self.min_frames,
            max_frames=self.max_frames,
            min_seconds=self.min_seconds,
            max_seconds=self.max_seconds,
            min_motion=self.min_motion,
            frames=self.frames,
        )
        return dataclasses.replace(super().plan, video=limits)

    def steps(self) -> tuple[Step, ...]:
        """See `CorpusOptions.steps`."""
        declared = functools.partial(
            records.declared_duration, minimum=self.min_seconds, maximum=self.max_seconds
        )
        first, *rest = super().steps()
        return (first, Step(name="declared duration", operation=declared), *rest)


def run(args: Sequence[str]) -> None:
    """Run the job with the words after the command's name."""
    options = parse(Options, prog="python etl/webvid.py", args=args)
    corpus, how = choose(options, options.format, FORMATS, guess)
    run_corpus(
        "webvid", options, corpus, how, identity="medium" if corpus == "webvid" else "record"
    )


if __name__ == "__main__":
    main(run)
