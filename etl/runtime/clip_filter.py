"""Scores image-caption pairs with CLIP after the download, with one worker per model copy.

The scores of a unit are written in one go and mark it as scored: a killed job scores only the
remaining units. Media go from the staged shard to the model, never through the executor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from rich.progress import Progress

from etl.cli import UserError
from etl.filters.base import Filter
from etl.filters.clip import ClipModel, ClipSpec
from etl.filters.policy import Policy, ScoreBound
from etl.filters.text import pair_caption
from etl.runtime.executor import Executor
from etl.runtime.job_state import JobState, write_table
from etl.runtime.scores import scores_path
from etl.runtime.shard_copy import read_batches

_THREADS = 4  # per model on CPUs; a model per CPU would take too much memory


class ClipScorer:
    """Reads the staged shard of a unit and writes the unit's scores.

    Args:
        output: the job's output folder.
        spec: the model.
        cuda: whether it runs on a GPU.
        threads: CPU threads that it may use.
    """

    def __init__(self, output: Path, spec: ClipSpec, cuda: bool, threads: int) -> None:
        self._state = JobState(output)
        self._model = ClipModel(spec, cuda=cuda, threads=threads)

    def __call__(self, number: int) -> int:
        """Score a unit; returns the number of its rows."""
        staged = self._state.staged_path(number)
        captions = [caption for batch in read_batches(staged) for caption in _captions(batch)]
        similarities = self._model.similarities(_pairs(staged))
        scores = [None if caption is None else next(similarities) for caption in captions]
        columns = pa.table({"score.clip": pa.array(scores, pa.float32())})
        write_table(scores_path(self._state, number), columns)
        return len(scores)


def _captions(batch: pa.RecordBatch) -> Iterator[str | None]:
    """The caption of every row that is one image and its caption, None for other rows."""
    media = batch["media"]
    kinds = pa.ListArray.from_arrays(media.offsets, media.values.field("kind")).to_pylist()
    for turns, kind in zip(batch["turns"].to_pylist(), kinds, strict=True):
        yield pair_caption(turns) if kind == ["image"] else None


def _pairs(path: Path) -> Iterator[tuple[bytes, str]]:
    for batch in read_batches(path):
        for row, caption in enumerate(_captions(batch)):
            if caption is not None:
                yield batch["media"][row][0]["data"].as_py(), caption


def score_units(
    state: JobState,
    unit_rows: Sequence[int],
    spec: ClipSpec,
    *,
    executor: Executor,
    progress: Progress,
) -> None:
    """Score every unit that has no scores yet.

    Args:
        state: the job's state.
        unit_rows: number of candidates in each unit.
        spec: the model.
        executor: runs the models.
        progress: shows the rows scored.

    Raises:
        UserError: a GPU was requested, but the executor has none.
    """
    staged = {
        number: result.shard.rows
        for number, rows in enumerate(unit_rows)
        if rows and (result := state.unit_result(number)) and result.shard
    }
    todo = [number for number in staged if not scores_path(state, number).exists()]
    task = progress.add_task("clip", total=sum(staged.values()))
    progress.update(task, completed=sum(staged.values()) - sum(staged[n] for n in todo))
    if not todo:
        return
    gpus = 0 if spec.device == "cpu" else executor.gpus
    if spec.device == "cuda" and not gpus:
        raise UserError("--clip-device cuda: there is no GPU; want cpu or auto")
    threads = min(_THREADS, executor.cpus)
    models = gpus or max(1, executor.cpus // threads)
    build = functools.partial(ClipScorer, state.output.resolve(), spec, gpus > 0, threads)
    needs = {"cpus": 0.5, "gpus": 1} if gpus else {"cpus": threads, "gpus": 0}
    with executor.pool(min(models, len(todo)), **needs) as pool:
        for rows in pool.map_unordered("clip", build, todo):
            progress.update(task, advance=rows)


def clip_filter(spec: ClipSpec) -> Filter:
    """The filter that drops pairs by their CLIP score; needs the column `score.clip`."""
    bound = ScoreBound(score="clip", minimum=spec.min_score)
    return Filter(name="clip", function=Policy(bounds=(bound,)))
