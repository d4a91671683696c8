"""Captioned or transcribed sounds to shards: `python etl/audio.py --input LIST …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/audio.py …`.
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
from etl.media.audio import AudioLimits
from etl.media.gather import MediaOptions
from etl.runtime.corpus import PairOptions, run_corpus, select_format
from etl.sources.sounds import FILE_NAME, FORMATS, detect_format, formats

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS]


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """Fetch, check and deduplicate sounds with their captions or transcripts.

    AudioCaps (csv with start times), WavCaps (JSON; downloads, or files in --media), Clotho (csv of
    five captions), AISHELL-1 and -2 (transcripts). Sounds are stored unchanged unless they are cut;
    their duration and loudness_dbfs (see --min-level) become scores.
    """

    format: FormatName = "auto"
    """The published format of the list; auto detects it from the first lines."""
    name: str = FILE_NAME
    """File names of AudioCaps' sounds, with columns of the list in braces."""
    cut: bool = False
    """AudioCaps' files are whole recordings: keep the 10 s from start_time, as FLAC."""
    min_seconds: float = 0.1
    """The minimum duration of a sound."""
    max_seconds: float = 600.0
    """The maximum duration of a sound."""
    min_level: float = -60.0
    """The minimum level of a sound's loudest second, in dBFS; below it the sound is silent."""
    min_caption: int = 1
    """The minimum characters of a caption."""
    max_bytes: int = 200_000_000
    """The maximum size of a response body."""
    timeout: float = 30.0
    """Seconds to wait for a server's next packet; a whole response may take three times as long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("max_seconds", self.max_seconds > self.min_seconds, "more than --min-seconds")

    @property
    def media_options(self) -> MediaOptions:
        """See `CorpusOptions.media_options`."""
        limits = AudioLimits(
            min_seconds=self.min_seconds, max_seconds=self.max_seconds, min_level=self.min_level
        )
        return dataclasses.replace(super().media_options, audio=limits)

    def filters(self) -> tuple[Filter, ...]:
        """See `CorpusOptions.filters`."""
        declared = functools.partial(
            records.declared_duration, minimum=self.min_seconds, maximum=self.max_seconds
        )
        first, *rest = super().filters()
        return (first, Filter(name="declared duration", function=declared), *rest)


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/audio.py", args=args)
    available = formats(options.name, cut=options.cut, local=bool(options.media))
    corpus, fmt = select_format(options, options.format, available, detect_format)
    run_corpus("audio", options, corpus, fmt)


if __name__ == "__main__":
    main(run)
