"""Instruction dialogues to shards: `python etl/instruct.py --input LIST.json …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/instruct.py …`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from etl.cli import main, parse
from etl.runtime.corpus import CorpusOptions, run_corpus
from etl.sources import instructions, vqa
from etl.sources.base import Format
from etl.sources.dialogues import LLAVA

FORMATS: Mapping[str, Format] = {
    "llava": LLAVA,
    "svit": instructions.SVIT,
    "minigpt4": instructions.MINIGPT4,
    "pandagpt": instructions.PANDAGPT,
    "videochat": instructions.VIDEOCHAT,
    "video-chatgpt": instructions.VIDEO_CHATGPT,
    "mimic-it": instructions.MIMIC_IT,
    "m3it": instructions.M3IT,
    "docowl": instructions.DOCOWL,
    "next-gpt": instructions.NEXT_GPT,
    "shikra": instructions.SHIKRA,
    "alpaca": instructions.ALPACA,
    "vqa": vqa.VQA,
    "gqa": vqa.GQA,
    "a-okvqa": vqa.A_OKVQA,
    "ocr-vqa": vqa.OCR_VQA,
    "st-vqa": vqa.ST_VQA,
    "vgqa": vqa.VGQA,
    "dvqa": vqa.DVQA,
    "doc-vqa": vqa.DOC_VQA,
    "visual7w": vqa.VISUAL7W,
    "arxiv-qa": vqa.ARXIV_QA,
}


@dataclass(frozen=True, kw_only=True)
class Options(CorpusOptions):
    """Check instruction dialogues and fetch their pictures, videos, sounds and point clouds.

    Reads LLaVA's list of `{id, image, conversations: [{from: human|gpt, value}]}` and the formats
    below. Media are URLs, or files that lie where --media says. A medium that dialogues share is
    fetched once; a dialogue without any is text. Only whole repetitions are duplicates.
    """

    format: Literal[
        "llava",
        "svit",
        "minigpt4",
        "pandagpt",
        "videochat",
        "video-chatgpt",
        "mimic-it",
        "m3it",
        "docowl",
        "next-gpt",
        "shikra",
        "alpaca",
        "vqa",
        "gqa",
        "a-okvqa",
        "ocr-vqa",
        "st-vqa",
        "vgqa",
        "dvqa",
        "doc-vqa",
        "visual7w",
        "arxiv-qa",
    ] = "llava"
    """How the list is published; docs/corpora.md says which data set has which. Answers to
    questions (vqa and what follows it) become instructions by the survey's templates."""


def run(args: Sequence[str]) -> None:
    """Run the job with the words after the command's name."""
    options = parse(Options, prog="python etl/instruct.py", args=args)
    corpus = "instruct" if options.format == "llava" else options.format
    run_corpus("instruct", options, corpus, FORMATS[options.format])


if __name__ == "__main__":
    main(run)
