"""Replies to the samples of shards: ranges that workers answer, killed and resumed at will.

OUT/parts/identity.json        the weights, data and settings; parts of others are discarded
OUT/parts/part-00000.jsonl     the replies of a range, written after their media
OUT/replies.jsonl              all of them, in the order of the samples, once they are complete
OUT/bad_samples.jsonl          id of each sample that could not be asked, and the reason

Which samples a range has does not change any reply, nor does the batch: seeds depend on ids.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from etl.cli import UserError
from etl.runtime.executor import ExecutorName, open_executor
from etl.storage.atomic import atomic_file, file_sha256, write_json
from etl.storage.shards import ShardSet
from model.exported import SPEC_FILE
from pipeline.checkpoint.checkpoints import checkpoint_weights
from pipeline.config.files import CONFIG_FILE
from pipeline.generate.answers import numbered
from pipeline.generate.assistant import GeneratingAssistant
from pipeline.generate.replies import REPLIES, GenerationSettings, reply_line

log = logging.getLogger(__name__)

PARTS = "parts"
BAD_SAMPLES = "bad_samples.jsonl"
_RANGE = 32
"""Samples per range, at least; a kill loses at most so many per worker."""


@dataclass(frozen=True, kw_only=True)
class SampleRange:
    """Samples that are answered together: those from `start` to before `stop`."""

    number: int
    start: int
    stop: int

    def part(self, output: Path) -> Path:
        """Return the file of their replies."""
        return output / PARTS / f"part-{self.number:05d}.jsonl"


class GenerateWorker:
    """Loads a run once, then answers one range of samples after another.

    Args:
        run: a run folder, or an exported one.
        data: folders of shards.
        output: where media and parts are written.
        settings: of the replies.
        checkpoint: of a run.
        batch: samples, and media, per batch.
        threads: for computing; None leaves their number as it is.
    """

    def __init__(
        self,
        run: Path,
        data: Sequence[Path],
        output: Path,
        settings: GenerationSettings,
        *,
        checkpoint: str = "newest",
        batch: int,
        threads: int | None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._shards = ShardSet(data, verify=False)
        self._output, self._batch, self._answers = output, batch, settings.n
        assistant = GeneratingAssistant.open(run, checkpoint=checkpoint)
        self._replier = assistant.replier(settings, batch=batch)

    def __call__(self, item: SampleRange) -> int:
        """Answer a range; return the number of its samples."""
        lines: list[dict[str, Any]] = []
        for start in range(item.start, item.stop, self._batch):
            rows = range(start, min(item.stop, start + self._batch))
            replies = self._replier.reply([self._shards[row] for row in rows])
            names = [numbered(f"{row:06d}", n) for row in rows for n in range(self._answers)]
            for name, reply in zip(names, replies, strict=True):
                if reply.skip_reason:
                    lines.append({"id": reply.id, "reason": reply.skip_reason})
                else:
                    lines.append(reply.save(self._output, name))
        with atomic_file(item.part(self._output)) as stream:
            stream.writelines(map(reply_line, lines))
        return item.stop - item.start


def generate_from_shards(
    run: Path,
    data: Sequence[Path],
    output: Path,
    settings: GenerationSettings,
    *,
    checkpoint: str = "newest",
    batch: int,
    executor: ExecutorName,
    limit: int | None = None,
    workers: int | None = None,
) -> int:
    """Answer the samples of shards; returns the exit code.

    Raises:
        UserError: no such run or data, or none of the samples can be asked.
    """
    run, output = run.absolute(), output.absolute()
    data = [folder.absolute() for folder in data]
    GeneratingAssistant.open(
        run, checkpoint=checkpoint
    )  # what is wrong with the run is said before workers start
    shards = ShardSet(data, stamps=output)
    rows = min(len(shards), limit or len(shards))
    size = -(-_RANGE // batch) * batch
    ranges = [
        SampleRange(number=number, start=start, stop=min(rows, start + size))
        for number, start in enumerate(range(0, rows, size))
    ]
    of_data = {"data": shards.fingerprint, "rows": rows, "range": size}
    _prepare(output, _identity(run, checkpoint) | of_data | vars(settings))
    missing = [item for item in ranges if not item.part(output).is_file()]
    left = sum(item.stop - item.start for item in missing)
    if left < rows:
        log.info("%s: resuming after %d of %d samples", output, rows - left, rows)
    make = partial(GenerateWorker, run, data, output, settings, checkpoint=checkpoint, batch=batch)
    with open_executor(executor) as opened, Progress(console=Console(stderr=True)) as progress:
        gpus = opened.gpus
        # Several threads divide work by its size, and so by the batch: see `batch_invariance`.
        make = partial(make, threads=None if gpus else 1)
        size = min(workers or gpus or opened.cpus, max(1, len(missing)))
        task = progress.add_task("generate", total=rows, completed=rows - left)
        with opened.pool(size, cpus=1, gpus=1 if gpus else 0) as pool:
            for done in pool.map_unordered("generate", make, missing):
                progress.update(task, advance=done)
    _join(output, ranges, data)
    return 0


def _identity(run: Path, checkpoint: str) -> dict[str, str]:
    """Return what determines a run's weights and prompts."""
    spec = run / SPEC_FILE
    if spec.is_file():
        return {"spec": file_sha256(spec)}
    return {
        "weights": file_sha256(checkpoint_weights(run, checkpoint)),
        "config": file_sha256(run / CONFIG_FILE),
    }


def _prepare(output: Path, identity: Mapping[str, Any]) -> None:
    """Make the folder of parts; discard what is there of another run, data or settings."""
    identity = json.loads(json.dumps(identity))  # as it is read back
    file = output / PARTS / "identity.json"
    if file.is_file() and json.loads(file.read_bytes()) != identity:
        log.warning("%s: of another run, data or settings; starting over", output / PARTS)
        shutil.rmtree(output / PARTS)
    try:
        write_json(file, identity)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None


def _join(output: Path, ranges: Sequence[SampleRange], data: Sequence[Path]) -> None:
    """Write the replies of all ranges to one file, and those that could not be asked to another."""
    lines = [line for item in ranges for line in item.part(output).read_bytes().splitlines(True)]
    skipped = [line for line in lines if "reason" in json.loads(line)]
    if skipped:
        first = json.loads(skipped[0])["reason"]
        total = f"{len(skipped)} of {len(lines)} samples"
        if len(skipped) == len(lines):
            folders = ", ".join(map(str, data))
            raise UserError(f"{folders}: {first} ({total})")
        log.warning("%s skipped, see %s; the first: %s", total, output / BAD_SAMPLES, first)
    for name, chosen in (
        (REPLIES, [line for line in lines if line not in skipped]),
        (BAD_SAMPLES, skipped),
    ):
        with atomic_file(output / name) as stream:
            stream.writelines(chosen)
    shutil.rmtree(output / PARTS)
