"""Predictions saved while an evaluation runs, so that it resumes after a stop or a kill.

OUTPUT/predictions.jsonl.partial     a line with the identity of the evaluation, then predictions,
                                     each with its index
OUTPUT/predictions.jsonl.1.partial   the same of rank 1, and so on
OUTPUT/predictions.jsonl             the predictions alone, in order, once they are complete

Every rank answers other batches. Which batches there are, and so every answer, does not depend on
the number of ranks; an evaluation may resume on another number.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from etl.cli import UserError
from etl.storage.atomic import atomic_file
from pipeline.distributed import barrier, rank_and_world_size
from pipeline.evaluate.generate_answers import Prediction

log = logging.getLogger(__name__)


class PartialPredictions:
    """The predictions of one pass over the questions, saved batch by batch; methods are collective.

    Args:
        path: of the complete file.
        identity: of the evaluation: weights, questions and options. Predictions saved for another
            one are discarded, with a log line.
        batch: questions per batch. An incomplete batch is discarded, so that the remaining
            questions are batched as in an uninterrupted evaluation.
        number: of the questions; None if it is not known.

    Raises:
        UserError: a file cannot be written, from any method; what was saved stays.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], batch: int, number: int | None = None
    ) -> None:
        self.path = path
        self._batch, self._number = batch, number
        self._rank, self._world = rank_and_world_size()
        self._partial = self._file(self._rank)
        self._head = json.dumps({"identity": dict(identity)}, sort_keys=True) + "\n"
        self._found: dict[int, Prediction] = {}
        if self._rank == 0:
            self._merge()
        barrier()  # the merged file is complete
        if self._rank:
            self._found = self._read(self._file(0))
        barrier()  # nobody writes before all have read the same

    @property
    def predictions(self) -> list[Prediction]:
        """The predictions so far, in the order of the questions; all of them after `finish`."""
        return [self._found[index] for index in sorted(self._found)]

    def remaining(self, number: int) -> list[int]:
        """Return the first question of each batch that this rank has to answer, of so many."""
        missing = [first for first in range(0, number, self._batch) if first not in self._found]
        return missing[self._rank :: self._world]

    def _file(self, rank: int) -> Path:
        suffix = f".{rank}.partial" if rank else ".partial"
        return self.path.with_name(self.path.name + suffix)

    def _files(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}*.partial"))

    def _merge(self) -> None:
        """Write the complete batches of all ranks of an earlier start to rank 0's file."""
        files = self._files()
        for file in files:
            self._found |= self._read(file)
        self._found = self._complete_batches(self._found)
        if files:
            log.info("%s: resuming after %d answers", self.path, len(self._found))
        with writing(self.path), atomic_file(self._partial) as stream:
            _write(stream, self._head, self._found)
        for file in files:
            if file != self._partial:
                file.unlink()

    def _read(self, file: Path) -> dict[int, Prediction]:
        head, *lines = file.read_bytes().split(b"\n")
        if head + b"\n" != self._head.encode():
            log.warning("%s: of other weights, questions or options; starting over", file)
            return {}
        return _valid_predictions(lines)

    def _complete_batches(self, found: Mapping[int, Prediction]) -> dict[int, Prediction]:
        def complete(index: int) -> bool:
            first = index - index % self._batch
            last = first + self._batch
            if self._number is not None:
                last = min(last, self._number)
            return all(other in found for other in range(first, last))

        return {index: found[index] for index in sorted(found) if complete(index)}

    def add(self, first: int, predictions: Sequence[Prediction]) -> None:
        """Save the predictions of the batch that begins with a question, synced to disk."""
        own = dict(enumerate(predictions, start=first))
        head = "" if self._partial.exists() else self._head
        with writing(self.path), self._partial.open("ab") as stream:
            _write(stream, head, own)
            stream.flush()
            os.fsync(stream.fileno())
        self._found |= own

    def finish(self) -> None:
        """Gather all ranks' predictions; rank 0 writes them without skipped questions."""
        barrier()
        for file in self._files():
            self._found |= self._read(file)
        if self._rank == 0:
            asked = {i: one for i, one in enumerate(self.predictions) if not one.skip_reason}
            with writing(self.path), atomic_file(self.path) as stream:
                _write(stream, "", asked, index=False)
        barrier()

    def remove_partial(self) -> None:
        """Remove the partial files, once the whole evaluation is complete; on rank 0."""
        for file in self._files():
            file.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk, into a mistake reported in one line.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); once it can, the same command resumes"
            " after the saved answers"
        ) from None


def _valid_predictions(lines: Sequence[bytes]) -> dict[int, Prediction]:
    """Return the predictions up to the first invalid line, by index.

    A killed process leaves its last line incomplete; after a node failure, data that had not
    reached the disk may read as zeros.
    """
    found: dict[int, Prediction] = {}
    for line in lines:
        try:
            index, prediction = _parse(line)
        except ValueError:
            break
        found[index] = prediction
    return found


def _write(
    stream: IO[bytes], head: str, predictions: Mapping[int, Prediction], *, index: bool = True
) -> None:
    stream.write(head.encode())
    for number, prediction in predictions.items():
        line = {**asdict(prediction), "correct": prediction.correct}
        for name in ("skip_reason", "option_scores", "others"):
            if not line[name]:
                del line[name]
        if index:
            line["index"] = number
        stream.write(json.dumps(line).encode() + b"\n")


def _parse(line: bytes) -> tuple[int, Prediction]:
    value = json.loads(line)
    index = value.pop("index")
    del value["correct"]  # derived from the others
    for name in ("option_scores", "others"):
        value[name] = tuple(value.get(name, ()))
    return index, Prediction(**value)
