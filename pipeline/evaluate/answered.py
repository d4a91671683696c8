"""What has been answered so far, so that an evaluation goes on where it was stopped or killed.

OUTPUT/predictions.jsonl.partial   a line of what the answers belong to, then one each
OUTPUT/predictions.jsonl           the answers alone, once all are there
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
from pipeline.evaluate.answers import Prediction

log = logging.getLogger(__name__)


class Answered:
    """The answers of one pass over the questions, kept batch by batch.

    Args:
        path: where they stand in the end.
        identity: what they belong to: weights, questions and options. Answers of anything else are
            forgotten, with a line that says so.
        batch: questions that are answered together; a batch counts when all of it is there, so
            that those after it are asked together with the same others.

    Raises:
        UserError: something cannot be written, by any method; what was kept stays.
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
            log.warning("%s: of other weights, questions or options; starts anew", self._partial)
            return []
        found = _sound(lines)
        whole = len(found) // batch * batch
        log.info("%s: goes on after %d answers", self.path, whole)
        return found[:whole]

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Keep the answers of a batch, through to the disk."""
        with writing(self.path), self._partial.open("ab") as stream:
            _write(stream, "", predictions)
            stream.flush()
            os.fsync(stream.fileno())
        self.predictions.extend(predictions)

    def finish(self) -> None:
        """Write all answers where they stand in the end."""
        with writing(self.path), atomic_file(self.path) as stream:
            _write(stream, "", self.predictions)

    def forget(self) -> None:
        """Remove what was only kept to go on from, when nothing is left to do."""
        self._partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one line that a file of an evaluation cannot be written, as on a full disk.

    Raises:
        UserError: the system refused; what is kept until then stays.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); once it can, the same command goes on"
            " after the answers that are kept"
        ) from None


def _sound(lines: Sequence[bytes]) -> list[Prediction]:
    """Return the answers up to the first line that is none.

    A killed process leaves its last line without an end; a node that dies may leave zeros for what
    had not reached the disk.
    """
    found: list[Prediction] = []
    for line in lines:
        try:
            found.append(_prediction(line))
        except ValueError:
            break
    return found


def _write(stream: IO[bytes], head: str, predictions: Sequence[Prediction]) -> None:
    stream.write(head.encode())
    for prediction in predictions:
        line = {**asdict(prediction), "right": prediction.right}
        stream.write(json.dumps(line).encode() + b"\n")


def _prediction(line: bytes) -> Prediction:
    value = json.loads(line)
    del value["right"]  # it follows from the others
    return Prediction(**value)
