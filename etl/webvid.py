"""Captioned videos to shards: `python etl/webvid.py --input LIST.csv …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/webvid.py …`.
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
from etl.media.gather import MediaOptions
from etl.media.video import VideoLimits
from etl.runtime.corpus import PairOptions, run_corpus, select_format
from etl.sources.videos import FORMATS, detect_format

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS]


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """Download, check and deduplicate videos and their captions.

    WebVid (csv: videoid, contentUrl, duration, page_dir, name) and MSR-VTT (JSON of videos and
    sentences, the clips in --media). A few frames of each video are stored, or all of it; its
    duration and motion (see --min-motion) become scores.
    """

    format: FormatName = "auto"
    """The published format of the list; auto detects it from the first lines."""
    frames: int = 5
    """Uniformly sampled frames to store of each video (the survey's five), as a video of JPEGs of
    the same duration; 0 stores videos unchanged."""
    min_seconds: float = 0.5
    """The minimum duration of a video."""
    max_seconds: float = 600.0
    """The maximum duration of a video."""
    min_frames: int = 1
    """The minimum frames of a video."""
    max_frames: int = 1 << 18
    """The maximum frames of a video."""
    min_motion: float = 0.25
    """The minimum change between sampled frames, in grey levels of 255; drops still videos."""
    max_bytes: int = 200_000_000
    """The maximum size of a response body."""
    timeout: float = 30.0
    """Seconds to wait for a server's next packet; a whole response may take three times as long."""
    rows_per_shard: int = 256
    """Input rows of a work unit, which becomes one shard; a killed job resumes by whole units."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("frames", self.frames >= 0, "0 or more")
        self._require("max_seconds", self.max_seconds > self.min_seconds, "more than --min-seconds")
        self._require("max_frames", self.max_frames >= self.min_frames, "--min-frames or more")

    @property
    def media_options(self) -> MediaOptions:
        """See `CorpusOptions.media_options`."""
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
        return dataclasses.replace(super().media_options, video=limits)

    def filters(self) -> tuple[Filter, ...]:
        """See `CorpusOptions.filters`."""
        declared = functools.partial(
            records.declared_duration, minimum=self.min_seconds, maximum=self.max_seconds
        )
        first, *rest = super().filters()
        return (first, Filter(name="declared duration", function=declared), *rest)


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/webvid.py", args=args)
    corpus, fmt = select_format(options, options.format, FORMATS, detect_format)
    run_corpus("webvid", options, corpus, fmt)


if __name__ == "__main__":
    main(run)
