"""Sounds with captions or transcripts to shards: `python etl/audio.py --input LIST …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/audio.py …`.
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
from etl.media.audio import AudioLimits
from etl.media.gather import MediaPlan
from etl.runtime.corpus import PairOptions, choose, run_corpus
from etl.sources.sounds import formats, guess


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """Fetch, check and deduplicate sounds and what is told of them.

    AudioCaps (csv with start times), WavCaps (JSON; downloads, or files among --media), Clotho (csv
    of five captions), AISHELL-1 and -2 (transcripts). Sounds are kept as they are, unless cut;
    their duration and loudness_dbfs (see --min-level) become scores.
    """

    format: Literal["auto", "audiocaps", "wavcaps", "clotho", "aishell"] = "auto"
    """How the list is published; auto looks at its beginning."""
    name: str = "{youtube_id}_{start_time}.wav"
    """What AudioCaps' files are called, with columns of the list in braces."""
    cut: bool = False
    """AudioCaps' files are whole recordings: keep the 10 s from start_time, as FLAC."""
    min_seconds: float = 0.1
    """The least duration of a sound."""
    max_seconds: float = 600.0
    """The largest duration of a sound."""
    min_level: float = -60.0
    """The least level of a sound's loudest second, in dBFS; below that it is silent."""
    min_caption: int = 1
    """The fewest characters of a caption."""
    max_bytes: int = 200_000_000
    """The largest body of a download."""
    timeout: float = 30.0
    """Seconds to wait for a server's next packet; a whole answer has three times as long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("max_seconds", self.max_seconds > self.min_seconds, "more than --min-seconds")

    @property
    def plan(self) -> MediaPlan:
        """See `CorpusOptions.plan`."""
        limits = AudioLimits(
            min_seconds=self.min_seconds, max_seconds=self.max_seconds, min_level=self.min_level
        )
        return dataclasses.replace(super().plan, audio=limits)

    def steps(self) -> tuple[Step, ...]:
        """See `CorpusOptions.steps`."""
        declared = functools.partial(
            records.declared_duration, minimum=self.min_seconds, maximum=self.max_seconds
        )
        first, *rest = super().steps()
        return (first, Step(name="declared duration", operation=declared), *rest)


def run(args: Sequence[str]) -> None:
    """Run the job with the words after the command's name."""
    options = parse(Options, prog="python etl/audio.py", args=args)
    known = formats(options.name, cut=options.cut, local=bool(options.media))
    corpus, how = choose(options, options.format, known, guess)
    run_corpus("audio", options, corpus, how)


if __name__ == "__main__":
    main(run)
