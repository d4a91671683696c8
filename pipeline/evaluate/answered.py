"""What has been answered so far, so that an evaluation goes on where it was stopped or killed.

OUTPUT/predictions.jsonl.partial   a line of what the answers belong to, then one each
OUTPUT/predictions.jsonl           the answers alone, once all are there
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from etl.atomic import atomic_file
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
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], batch: int) -> None:
        self.path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._head = json.dumps({"identity": dict(identity)}, sort_keys=True) + "\n"
        self.predictions = self._read(batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._partial) as stream:
            _write(stream, self._head, self.predictions)

    def _read(self, batch: int) -> list[Prediction]:
        if not self._partial.is_file():
            return []
        text = self._partial.read_text()
        # A line that was being written when the process was killed has no end.
        whole_lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        head, lines = "".join(whole_lines[:1]), whole_lines[1:]
        if head != self._head:
            log.warning("%s: of other weights, questions or options; starts anew", self._partial)
            return []
        whole = len(lines) // batch * batch
        log.info("%s: goes on after %d answers", self.path, whole)
        return [_prediction(line) for line in lines[:whole]]

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Keep the answers of a batch, through to the disk."""
        with self._partial.open("ab") as stream:
            _write(stream, "", predictions)
            stream.flush()
            os.fsync(stream.fileno())
        self.predictions.extend(predictions)

    def finish(self) -> None:
        """Write all answers where they stand in the end."""
        with atomic_file(self.path) as stream:
            _write(stream, "", self.predictions)

    def forget(self) -> None:
        """Remove what was only kept to go on from, when nothing is left to do."""
        self._partial.unlink(missing_ok=True)


def _write(stream: IO[bytes], head: str, predictions: Sequence[Prediction]) -> None:
    stream.write(head.encode())
    for prediction in predictions:
        line = {**asdict(prediction), "right": prediction.right}
        stream.write(json.dumps(line).encode() + b"\n")


def _prediction(line: str) -> Prediction:
    value = json.loads(line)
    del value["right"]  # it follows from the others
    return Prediction(**value)
