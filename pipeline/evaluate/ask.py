"""`python -m pipeline ask`: a trained run answers one question about files, streamed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from etl.cli import UserError, parse
from model.sampling import Sampling
from pipeline.evaluate.assistant import Assistant
from pipeline.evaluate.sampling_options import SamplingOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AskOptions(SamplingOptions):
    """Ask a trained run, or a folder that `export` wrote, about files, or without any."""

    text: tyro.conf.Positional[str]
    """The question; a placeholder in it, such as <image>, says where a file is shown, which is
    otherwise before the text."""
    run: Path
    """The run folder of a trained stage, or an exported folder."""
    checkpoint: str = "newest"
    """Of a run: `newest`, `best` (by the loss of its validations), or the step of one."""
    image: Path | None = None
    """An image."""
    video: Path | None = None
    """A video."""
    audio: Path | None = None
    """A sound."""
    points: Path | None = None
    """A point cloud."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    json: bool = False
    """Print one JSON object once the answer is complete, instead of streaming it."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens: {self.max_new_tokens}, want at least 1")


def ask(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(AskOptions, prog="python -m pipeline ask", args=args)
    assistant = Assistant.open(options.run, checkpoint=options.checkpoint)
    if not assistant.reads_questions:
        log.warning(
            "%s: trained on captions alone (MM-PT): it describes the files and "
            "ignores the question",
            options.run,
        )
    files = {name: getattr(options, name) for name in ("image", "video", "audio", "points")}
    sampling = Sampling.of(options)
    answer, *others = assistant.answers(
        options.text,
        files,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling,
        on_text=None if options.json else _write,
    )
    if options.json:
        given = {kind: str(file) for kind, file in files.items() if file is not None}
        value: dict[str, object] = {"question": options.text, **given, "answer": answer}
        value |= {"others": others} if others else {}
        sys.stdout.write(json.dumps(value) + "\n")
    elif others:
        sys.stdout.write("\n\n".join([answer, *others]) + "\n")
    else:
        sys.stdout.write("\n")
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
