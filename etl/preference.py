"""Preferences with written feedback to shards: `python etl/preference.py --input LIST.json …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/preference.py …`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from etl.cli import main, parse
from etl.runtime.corpus import DialogueOptions, run_corpus, select_format
from etl.sources import looks, preferences
from etl.sources.base import Format
from etl.sources.fields import with_columns

FORMATS: Mapping[str, Format] = {**preferences.FORMATS, **preferences.DIALOGUES}

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS]


@dataclass(frozen=True, kw_only=True)
class Options(DialogueOptions):
    """Check preferences and feedback, and fetch their images.

    The chosen answer is the last turn; the other one is `rejected`, its critique `feedback`. Reads
    JSON, lines of JSON, and parquet with embedded images.
    """

    format: FormatName = "auto"
    """The published format of the records; auto detects it from the first one. rlhf-v reads any
    list of image, question, chosen and rejected, messages any dialogues with a rejected answer."""


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/preference.py", args=args)
    detect = functools.partial(looks.detect, looks=looks.PREFERENCES, columns=options.columns)
    name, fmt = select_format(options, options.format, FORMATS, detect)
    run_corpus("preference", options, name, with_columns(fmt, options.columns))


if __name__ == "__main__":
    main(run)
