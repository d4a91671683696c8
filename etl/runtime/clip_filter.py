"""The pass of a model over what was downloaded: Ray Data, with an actor for each model.

Every range's scores are written at once, and that is their receipt: a killed job judges the ranges
that are left. Media go from the staged shard to the model and never through Ray's object store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import ray
from rich.progress import Progress

from etl.cli import UserError
from etl.filters.base import Step
from etl.filters.clip import Clip, ClipSpec
from etl.filters.policy import Bound, Policy
from etl.filters.text import pair_caption
from etl.runtime.copies import batches
from etl.runtime.job_state import Ledger, write_table
from etl.runtime.ray_cluster import quiet_ray_data
from etl.runtime.scores import computed_path

_THREADS = 4  # of one model on CPUs; a model per CPU would take too much memory


class ClipRange:
    """Ray Data's actor: reads a range's staged shard and writes its scores beside it.

    Args:
        output: the job's output folder.
        spec: the model.
        cuda: whether it has a GPU.
        threads: CPU threads that it may use.
    """

    def __init__(self, output: Path, spec: ClipSpec, cuda: bool, threads: int) -> None:
        self._ledger = Ledger(output)
        self._clip = Clip(spec, cuda=cuda, threads=threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of one `range` number → the range and its rows."""
        (number,) = table["range"].to_pylist()
        staged = self._ledger.staged_path(number)
        captions = [one for batch in batches(staged) for one in _captions(batch)]
        cosines = self._clip.cosines(_pairs(staged))
        scores = [None if caption is None else next(cosines) for caption in captions]
        found = pa.table({"score.clip": pa.array(scores, pa.float32())})
        write_table(computed_path(self._ledger, number), found)
        return pa.table({"range": [number], "rows": [len(scores)]})


def _captions(batch: pa.RecordBatch) -> Iterator[str | None]:
    """The caption of every row that is one image and its caption, None for others."""
    media = batch["media"]
    kinds = pa.ListArray.from_arrays(media.offsets, media.values.field("kind")).to_pylist()
    for turns, kind in zip(batch["turns"].to_pylist(), kinds, strict=True):
        yield pair_caption(turns) if kind == ["image"] else None


def _pairs(path: Path) -> Iterator[tuple[bytes, str]]:
    for batch in batches(path):
        for row, caption in enumerate(_captions(batch)):
            if caption is not None:
                yield batch["media"][row][0]["data"].as_py(), caption


def judge(
    ledger: Ledger, ranges: Sequence[int], spec: ClipSpec, *, cpus: int, progress: Progress
) -> None:
    """Have every range judged whose scores are not there yet.

    Args:
        ledger: the job's.
        ranges: the candidates of each range.
        spec: the model.
        cpus: of the cluster.
        progress: where to tell.

    Raises:
        UserError: a GPU was asked for and the cluster has none.
    """
    staged = {
        number: receipt.shard.rows
        for number, rows in enumerate(ranges)
        if rows and (receipt := ledger.receipt(number)) and receipt.shard
    }
    todo = [number for number in staged if not computed_path(ledger, number).exists()]
    task = progress.add_task("clip", total=sum(staged.values()))
    progress.update(task, completed=sum(staged.values()) - sum(staged[n] for n in todo))
    if not todo:
        return
    gpus = 0 if spec.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    if spec.device == "cuda" and not gpus:
        raise UserError("--clip-device cuda: the Ray cluster has no GPU; want cpu or auto")
    threads = min(_THREADS, cpus)
    models = gpus or max(1, cpus // threads)
    quiet_ray_data()
    done = ray.data.from_items(
        [{"range": number} for number in todo], override_num_blocks=len(todo)
    ).map_batches(
        ClipRange,
        fn_constructor_args=(ledger.output.resolve(), spec, gpus > 0, threads),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(models, len(todo))),
        num_cpus=0.5 if gpus else threads / 2,  # the rest is left to Ray Data's own tasks
        num_gpus=1 if gpus else 0,
    )
    for row in done.iter_rows():
        progress.update(task, advance=row["rows"])


def judgement(spec: ClipSpec) -> Step:
    """The step that drops what the model found; needs the column `score.clip`."""
    return Step(name="clip", operation=Policy(bounds=(Bound(score="clip", least=spec.least),)))
