"""Predictions saved while an evaluation runs, so that it resumes after a stop or a kill.

OUTPUT/predictions.jsonl.partial   a line with the identity of the evaluation, then the predictions
OUTPUT/predictions.jsonl           the predictions alone, once they are complete
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from etl.cli import UserError
from etl.storage.atomic import atomic_file
from pipeline.evaluate.generate_answers import Prediction

log = logging.getLogger(__name__)


class PartialPredictions:
    """The predictions of one pass over the questions, saved batch by batch.

    Args:
        path: of the complete file.
        identity: of the evaluation: weights, questions and options. Predictions saved for another
            one are discarded, with a log line.
        batch: questions per batch. An incomplete batch is discarded, so that the remaining
            questions are batched as in an uninterrupted evaluation.

    Raises:
        UserError: a file cannot be written, from any method; what was saved stays.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], batch: int) -> None:
        self.path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._head = json.dumps({"identity": dict(identity)}, sort_keys=True) + "\n"
        self.predictions = self._read(batch)
        with writing(path), atomic_file(self._partial) as stream:
            _write(stream, self._head, self.predictions)

    def _read(self, batch: int) -> list[Prediction]:
        if not self._partial.is_file():
            return []
        head, *lines = self._partial.read_bytes().split(b"\n")
        if head + b"\n" != self._head.encode():
            log.warning("%s: of other weights, questions or options; starting over", self._partial)
            return []
        found = _valid_predictions(lines)
        complete = len(found) // batch * batch
        log.info("%s: resuming after %d answers", self.path, complete)
        return found[:complete]

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Save a batch of predictions, synced to disk."""
        with writing(self.path), self._partial.open("ab") as stream:
            _write(stream, "", predictions)
            stream.flush()
            os.fsync(stream.fileno())
        self.predictions.extend(predictions)

    def finish(self) -> None:
        """Write the complete file: the predictions, without skipped questions."""
        asked = [prediction for prediction in self.predictions if not prediction.skip_reason]
        with writing(self.path), atomic_file(self.path) as stream:
            _write(stream, "", asked)

    def remove_partial(self) -> None:
        """Remove the partial file, once the whole evaluation is complete."""
        self._partial.unlink(missing_ok=True)


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


def _valid_predictions(lines: Sequence[bytes]) -> list[Prediction]:
    """Return the predictions up to the first invalid line.

    A killed process leaves its last line incomplete; after a node failure, data that had not
    reached the disk may read as zeros.
    """
    found: list[Prediction] = []
    for line in lines:
        try:
            found.append(_parse(line))
        except ValueError:
            break
    return found


def _write(stream: IO[bytes], head: str, predictions: Sequence[Prediction]) -> None:
    stream.write(head.encode())
    for prediction in predictions:
        line = {**asdict(prediction), "correct": prediction.correct}
        for name in ("skip_reason", "option_scores", "others"):
            if not line[name]:
                del line[name]
        stream.write(json.dumps(line).encode() + b"\n")


def _parse(line: bytes) -> Prediction:
    value = json.loads(line)
    del value["correct"]  # derived from the others
    for name in ("option_scores", "others"):
        value[name] = tuple(value.get(name, ()))
    return Prediction(**value)
