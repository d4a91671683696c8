"""Instruction dialogues to shards: `python etl/instruct.py --input LIST.json …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/instruct.py …`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from etl.cli import main, parse
from etl.runtime.corpus import DialogueOptions, WordingOptions, run_corpus, select_format
from etl.sources import dialogues, instructions, looks, vqa
from etl.sources.base import Format
from etl.sources.fields import with_columns

FORMATS: Mapping[str, Format] = {**dialogues.FORMATS, **instructions.FORMATS, **vqa.FORMATS}

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS]


@dataclass(frozen=True, kw_only=True)
class Options(WordingOptions, DialogueOptions):
    """Check instruction dialogues and fetch their images, videos, sounds and point clouds.

    Reads dialogues as LLaVA, ShareGPT, OpenAI, LLaMA-Factory, ms-swift and TRL have them
    (`conversations` or `messages`, with columns of media), questions with an answer (Alpaca), and
    the formats below. Media are URLs, files in --media, or bytes in parquet. A medium that several
    dialogues share is fetched once; a dialogue without media is text only. Only identical dialogues
    count as duplicates.
    """

    format: FormatName = "auto"
    """The published format of the list; auto detects it from the first record. docs/corpora.md
    lists each data set's. The questions and answers of vqa and the formats after it are put into
    the survey's instruction templates."""


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/instruct.py", args=args)
    detect = functools.partial(looks.detect, looks=looks.INSTRUCTIONS, columns=options.columns)
    name, fmt = select_format(options, options.format, FORMATS, detect)
    corpus = "instruct" if fmt is dialogues.LLAVA else name
    fmt = options.in_words(with_columns(fmt, options.columns))
    run_corpus("instruct", options, corpus, fmt)


if __name__ == "__main__":
    main(run)
