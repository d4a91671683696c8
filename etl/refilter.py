"""Filters shards that lie there into new ones: `python etl/refilter.py --input SHARDS …`.

What the ETL found out about every row is in its columns, so another policy needs no second
download, and no Ray: one process copies 350 MB in a second of CPU. With `--ray` a cluster does it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl.cli import UserError, main, parse
from etl.filters.base import Outcome, Step, add_yields, run_steps
from etl.filters.policy import Policy, read_bounds
from etl.filters.records import pairs_only
from etl.media.image import ImageLimits
from etl.report.report import DROPS_FILE, print_summary, write_report
from etl.runtime.copies import CopyShard, columns, image_sizes, on_ray, score_names
from etl.runtime.job_state import Ledger, Plan, make_plan
from etl.runtime.options import CaptionOptions
from etl.storage.atomic import atomic_file
from etl.storage.shards import MANIFEST, Manifest, Shard, ShardSet, read_manifest, write_manifest

_log = logging.getLogger("etl.refilter")


@dataclass(frozen=True, kw_only=True)
class Options(CaptionOptions):
    """Filter the shards of a complete folder by what their columns tell, into another folder.

    Rows that are kept stay as they are. A row that lacks a score, a caption or an image is not
    judged by it; a caption is what follows a medium that stands alone. Going on after a kill needs
    only the same command again.

    For example COYO-700M's and LAION-aesthetic's rules: --min-side 200 --max-aspect 3
    --min-caption 6 --min-words 3 --max-words 256 --languages en --maximum punsafe=0.5 gantman=0.5
    pwatermark=0.8 --minimum aesthetic=7 (github.com/kakaobrain/coyo-dataset,
    github.com/LAION-AI/laion-datasets).
    """

    input: Path
    """Folder of shards, with their manifest.json."""
    output: Path
    """Folder for the new shards, manifest.json, drops.parquet and report.html."""
    minimum: tuple[str, ...] = ()
    """The least of scores, such as similarity=0.3 aesthetic=5."""
    maximum: tuple[str, ...] = ()
    """The most of scores, such as punsafe=0.2."""
    min_caption: int = 0
    """The fewest characters of a caption."""
    max_caption: int | None = None
    """The most characters of a caption."""
    min_side: int = 1
    """The least width and height of every image, in pixels."""
    max_aspect: float | None = None
    """The largest ratio of an image's longer to its shorter side."""
    ray: bool = False
    """Copy on a Ray cluster: the one that RAY_ADDRESS names, or a local one."""
    json: bool = False
    """Print the summary as one JSON object instead of a table."""

    @property
    def config(self) -> dict[str, Any]:
        """What decides which rows come out, for the plan."""
        values = dataclasses.asdict(self)
        rest = ("input", "output", "ray", "json")
        return {name: value for name, value in values.items() if name not in rest}

    def steps(self, policy: Policy) -> tuple[Step, ...]:
        """What judges the rows, in order."""
        length, *others = self.caption_steps()
        only = functools.partial(pairs_only, operation=length.operation)
        limits = ImageLimits(
            min_side=self.min_side, max_aspect=self.max_aspect or float("inf"), max_pixels=1 << 62
        )
        return (
            Step(name=length.name, operation=only),
            *others,
            Step(name="image size", operation=functools.partial(image_sizes, limits=limits)),
            Step(name="policy", operation=policy),
        )


def run(args: Sequence[str]) -> None:
    """Run the command with the words after its name."""
    options = parse(Options, prog="python etl/refilter.py", args=args)
    if options.output.resolve() == options.input.resolve():
        raise UserError(f"--output {options.output}: want another folder than --input")
    source = read_manifest(options.input)
    ShardSet([options.input], verify=False)  # all are there; their bytes are compared when read
    scores = score_names(options.input, source)
    policy = read_bounds(options.minimum, options.maximum, scores)
    steps = options.steps(policy)
    plan = make_plan("refilter", [options.input / MANIFEST], options.config)
    ledger = Ledger(options.output)
    if ledger.complete(plan):
        _log.info("%s: already complete, nothing to do", ledger.output)
    else:
        with ledger.lock():
            ledger.clear()
            _work(options, plan, ledger, steps, scores)
            ledger.discard()
    print_summary(ledger.output, read_manifest(ledger.output), as_json=options.json)


def _work(
    options: Options, plan: Plan, ledger: Ledger, steps: Sequence[Step], scores: Sequence[str]
) -> None:
    source = read_manifest(options.input)
    rows = [shard.rows for shard in source.shards]
    ledger.save_plan(plan, rows=rows, input_rows=source.rows, yields=[])
    outcomes = list(_judged(options.input, source, steps, scores))
    kept = [outcome.kept["row"].to_pylist() for outcome in outcomes]
    wanted = [number for number, keep in enumerate(kept) if keep]
    items = [
        {"number": number, "keep": kept[number]} for number in wanted if not ledger.written(number)
    ]
    copy = CopyShard(ledger.output.resolve(), options.input.resolve(), source.shards)
    told = on_ray(copy, items) if options.ray else (copy.row(item) for item in items)
    for trouble in filter(None, told):
        raise UserError(trouble)
    shards = [ledger.written(number) for number in wanted]
    _finish(ledger, plan, source, outcomes, tuple(shard for shard in shards if shard))


def _judged(
    folder: Path, source: Manifest, steps: Sequence[Step], scores: Sequence[str]
) -> Iterator[Outcome]:
    """What becomes of each shard's rows; kept ones are numbered in it, dropped ones over all."""
    first = 0
    for shard in source.shards:
        found = run_steps(columns(folder / shard.path, first, scores), steps)
        places = pa.table({"row": pc.subtract(found.kept["row"], first)})
        yield dataclasses.replace(found, kept=places)
        first += shard.rows


def _finish(
    ledger: Ledger,
    plan: Plan,
    source: Manifest,
    outcomes: Sequence[Outcome],
    shards: tuple[Shard, ...],
) -> None:
    """Write the drops, the report and, last, the manifest."""
    drops = pa.concat_tables(outcome.drops for outcome in outcomes).sort_by("row")
    with atomic_file(ledger.output / DROPS_FILE) as stream:
        pq.write_table(drops, stream)
    yields = add_yields([outcome.yields for outcome in outcomes])
    manifest = Manifest(
        job="refilter",
        plan=dataclasses.asdict(plan),
        input_rows=source.rows,
        rows=sum(shard.rows for shard in shards),
        drops=dict(collections.Counter(drops["reason"].to_pylist()).most_common()),
        shards=shards,
        details={
            "yields": [dataclasses.asdict(found) for found in yields],
            "input": {"job": source.job, "plan": source.plan},
        },
    )
    write_report(ledger.output, manifest)
    write_manifest(ledger.output, manifest)


if __name__ == "__main__":
    main(run)
