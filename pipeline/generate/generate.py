"""`python -m pipeline generate`: a trained run answers prompts with text and media."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from etl.cli import UserError, parse
from etl.runtime.executor import ExecutorName
from etl.storage.atomic import atomic_file
from pipeline.generate.answers import OnStep, numbered
from pipeline.generate.assistant import GeneratingAssistant
from pipeline.generate.batches import generate_from_shards
from pipeline.generate.replies import REPLIES, GenerationSettings, reply_line


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(GenerationSettings):
    """Answer a prompt, or those of data folders, with text and with media that are generated.

    The model decides where a medium stands. Text is printed as it is generated; media are written
    to files beside replies.jsonl, which has the text with a placeholder for each.
    """

    run: Path
    """The run folder of a stage that trained output branches, or an exported folder."""
    checkpoint: str = "newest"
    """Of a run: `newest`, `best` (by the loss of its validations), or the step of one."""
    prompt: str | None = None
    """The prompt; placeholders in it, such as <image>, say where files are shown, which is
    otherwise before the text."""
    media: tuple[Path, ...] = ()
    """Files that are shown with the prompt: images, videos, sounds, point clouds."""
    data: tuple[Path, ...] = ()
    """Folders of Arrow shards instead: the last answer of each sample is made anew."""
    output: Path | None = None
    """Folder for replies.jsonl and the media. Default: RUN/generated."""
    batch_size: int = 16
    """With --data: samples, and media, per batch; fewer where they do not fit into memory."""
    executor: ExecutorName = "auto"
    """With --data: where the workers run, processes on this machine (local) or actors of a Ray
    cluster (ray); auto is ray where RAY_ADDRESS names a cluster."""
    workers: int | None = None
    """With --data: at most so many. Default: one per GPU, or per CPU without one; each loads the
    model."""
    limit: int | None = None
    """With --data: only the first samples, at most so many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "workers", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')}: {value}, want at least 1")
        if (self.prompt is None) == (not self.data):
            raise UserError("want either --prompt TEXT or --data SHARDS")
        if self.media and self.data:
            raise UserError("--media: shown with --prompt; the samples of --data have their own")

    @property
    def settings(self) -> GenerationSettings:
        """The settings among the options."""
        return GenerationSettings.of(self)


def generate(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(GenerateOptions, prog="python -m pipeline generate", args=args)
    settings = options.settings
    output = options.output or options.run / "generated"
    if options.prompt is not None:
        return _answer_prompt(options, options.prompt, settings, output)
    return generate_from_shards(
        options.run,
        options.data,
        output,
        settings,
        checkpoint=options.checkpoint,
        batch=options.batch_size,
        executor=options.executor,
        limit=options.limit,
        workers=options.workers,
    )


def _answer_prompt(
    options: GenerateOptions, prompt: str, settings: GenerationSettings, output: Path
) -> int:
    assistant = GeneratingAssistant.open(options.run, checkpoint=options.checkpoint)
    streams = settings.n == 1
    with _denoising_bar() as on_step:
        replies = assistant.replies(
            prompt, options.media, settings, on_text=_write if streams else None, on_step=on_step
        )
    # Other prompts, files, settings or checkpoints do not overwrite it.
    given = [prompt, *(file.name for file in options.media), repr(settings)]
    given += [options.checkpoint] if options.checkpoint != "newest" else []
    name = hashlib.sha256("\0".join(given).encode()).hexdigest()[:8]
    for number, reply in enumerate(replies):
        sys.stdout.write("\n" if streams else f"{reply.text}\n")
        value = reply.save(output, numbered(name, number))
        value |= {"id": numbered(name, number), "prompt": prompt}
        _append(output / REPLIES, value)
        for medium in value["media"]:
            file = output / medium["file"]
            sys.stdout.write(f"{medium['kind']}: {file} (seed {medium['seed']})\n")
    return 0


def _append(file: Path, value: dict[str, object]) -> None:
    """Add a reply to those in a file, in place of an earlier one of the same name."""
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    line = reply_line(value)
    start = line.partition(b",")[0] + b","
    with atomic_file(file) as stream:
        stream.writelines([*(each for each in lines if not each.startswith(start)), line])


@contextmanager
def _denoising_bar() -> Iterator[OnStep]:
    """Show a bar for each group of media that are generated together, once the text is complete."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks = []

        def on_step(done: int, total: int) -> None:
            if done == 1:
                tasks.append(progress.add_task("denoising", total=total))
            progress.update(tasks[-1], completed=done)

        yield on_step


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
