"""Instruction dialogues to shards: `python etl/instruct.py --input LIST.json …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/instruct.py …`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from etl.cli import main, parse
from etl.runtime.corpus import CorpusOptions, run_corpus
from etl.sources import dialogues, instructions, vqa
from etl.sources.base import Format

FORMATS: Mapping[str, Format] = {**dialogues.FORMATS, **instructions.FORMATS, **vqa.FORMATS}

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[(*FORMATS,)]


@dataclass(frozen=True, kw_only=True)
class Options(CorpusOptions):
    """Check instruction dialogues and fetch their images, videos, sounds and point clouds.

    Reads LLaVA's list of `{id, image, conversations: [{from: human|gpt, value}]}` and the formats
    below. Media are URLs, or files in --media. A medium that several dialogues share is fetched
    once; a dialogue without media is text only. Only identical dialogues count as duplicates.
    """

    format: FormatName = "llava"
    """The published format of the list; docs/corpora.md lists each data set's. The questions and
    answers of vqa and the formats after it are put into the survey's instruction templates."""


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/instruct.py", args=args)
    corpus = "instruct" if options.format == "llava" else options.format
    run_corpus("instruct", options, corpus, FORMATS[options.format])


if __name__ == "__main__":
    main(run)
