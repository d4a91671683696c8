"""The model card of an exported run: what it is, how to open it, its lineage and curves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.report.charts import number, standalone
from etl.storage.atomic import atomic_file
from etl.storage.manifest import read_manifest
from etl.storage.shards import ShardSet
from model.spec import System
from pipeline.config.files import CONFIG_FILE
from pipeline.config.run_config import RunConfig, read_config
from pipeline.run_folder.evaluation import EVALUATION
from pipeline.run_folder.metrics_writer import read_metrics
from pipeline.run_folder.report import loss_charts

CARD = "README.md"
_CURVES = "curves"
_LICENCE_ROWS = 10_000
"""About so many samples of a folder are searched for their licences."""


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One run of the chain that led to a model, with the folder it is in."""

    folder: Path
    config: RunConfig
    metrics: Sequence[Mapping[str, Any]]


def write_model_card(run: Path, config: RunConfig, output: Path, *, usage: str) -> None:
    """Write README.md, and the curves that it shows, into an exported folder.

    Args:
        run: the exported run.
        config: of the run.
        output: the exported folder.
        usage: the Python that opens it.
    """
    chain = _chain(run, config)
    curves = list(_write_curves(chain, output))
    sections = [
        _front_matter(config.system),
        f"# {config.system.name}\n\n{_summary(config.system)}",
        f"## Use\n\n```python\n{usage.strip()}\n```",
        "## Parts\n\n"
        + _table(("part", "class", "weights from", "licence"), _parts(config.system)),
        "## Training\n\n" + _table(_STAGE_COLUMNS, map(_stage_row, chain)),
        "## Data\n\n" + _table(_DATA_COLUMNS, _data_rows(chain)),
        _scores(run),
        "## Curves\n\n" + "\n".join(f"![{title}]({file})" for title, file in curves)
        if curves
        else "",
    ]
    with atomic_file(output / CARD) as stream:
        stream.write(("\n\n".join(filter(None, sections)) + "\n").encode())


def _chain(run: Path, config: RunConfig) -> list[StageRun]:
    """Return the runs that led to a run and still exist, the first one first."""
    chain = [StageRun(folder=run, config=config, metrics=read_metrics(run))]
    seen = {run.resolve()}
    while (before := chain[0].config.init_from) is not None:
        folder = Path(before)
        if not (folder / CONFIG_FILE).is_file() or folder.resolve() in seen:
            break
        seen.add(folder.resolve())
        earlier = StageRun(
            folder=folder, config=read_config(folder / CONFIG_FILE), metrics=read_metrics(folder)
        )
        chain.insert(0, earlier)
    return chain


def _front_matter(system: System) -> str:
    kinds = [kind for kind in system.model.modalities if kind in ("image", "video", "audio")]
    task = f"{kinds[0]}-text-to-text" if kinds else "text-generation"
    lines = ["---", "tags:", "- mmloom", "- multimodal", f"pipeline_tag: {task}", "---"]
    return "\n".join(lines)


def _summary(system: System) -> str:
    media = ", ".join(system.model.modalities)
    backbone = system.model.backbone
    return (
        f"A multimodal language model with the wiring of `{system.name}` ({system.paper}), trained "
        f"with mmloom. It answers questions about {media or 'texts'}; its language model "
        f"({backbone.kind}) has {backbone.layers} layers of width {backbone.width:,}."
    )


def _parts(system: System) -> Iterator[tuple[str, ...]]:
    model = system.model
    for branch in model.inputs:
        encoder = branch.encoder
        weights = getattr(encoder, "weights", "")
        yield f"{branch.modality} encoder", encoder.kind, weights, _licence(weights)
        yield f"{branch.modality} projector", branch.projector.kind, "trained here", ""
    yield (
        "language model",
        model.backbone.kind,
        model.backbone.weights,
        _licence(model.backbone.weights),
    )


def _licence(weights: str) -> str:
    """Return the licence that the model card of a folder of weights names, if there is one."""
    card = Path(weights) / CARD
    if not weights or not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("license:"))
    return next(named, "")


_STAGE_COLUMNS = ("stage", "run", "trained", "steps", "samples", "first loss", "last loss")


def _stage_row(stage: StageRun) -> tuple[str, ...]:
    settings, metrics = stage.config.settings, stage.metrics
    adapters = f", {settings.peft.kind}" if settings.peft else ""
    trained = ", ".join(f"`{pattern}`" for pattern in settings.trainable) + adapters
    if not metrics:
        return stage.config.stage, str(stage.folder), trained, "0", "0", "", ""
    first, last = metrics[0], metrics[-1]
    counts = (number(last["step"]), number(last["samples"]))
    losses = tuple(f"{entry['loss']:.4g}" for entry in (first, last))
    return stage.config.stage, str(stage.folder), trained, *counts, *losses


_DATA_COLUMNS = ("stage", "folder", "job", "samples", "dropped", "made from", "licences")


def _data_rows(chain: Sequence[StageRun]) -> Iterator[tuple[str, ...]]:
    for stage in chain:
        for name in stage.config.data:
            yield stage.config.stage, name, *_manifest(Path(name))


def _manifest(folder: Path) -> tuple[str, ...]:
    """Return what the manifest of a data folder tells; nothing if the folder is gone."""
    try:
        manifest = read_manifest(folder)
    except UserError:
        return "", "", "", "no longer there", ""
    plan = manifest.plan
    source = str(plan.get("input", "")) if isinstance(plan, Mapping) else ""
    dropped = number(sum(manifest.drops.values()))
    return manifest.job, number(manifest.rows), dropped, source, _licences(folder)


def _licences(folder: Path) -> str:
    """Return the licences that the samples' lineage names, with how many samples each has."""
    counts: Counter[str] = Counter()
    for batch in ShardSet([folder], verify=False).batches(["lineage"]):
        counts.update(dict(row or ()).get("license", "") for row in batch["lineage"].to_pylist())
        if counts.total() >= _LICENCE_ROWS:
            break
    del counts[""]
    return ", ".join(f"{name} ({number(count)})" for name, count in counts.most_common(5))


def _scores(run: Path) -> str:
    file = run / EVALUATION / "scores.json"
    if not file.is_file():
        return ""
    scores = json.loads(file.read_bytes())
    rows = [
        (name.replace("_", " "), f"{value:.4g}")
        for name, value in scores.items()
        if isinstance(value, int | float)
    ]
    return "## Evaluation\n\n" + _table(("score", "value"), rows)


def _write_curves(chain: Sequence[StageRun], output: Path) -> Iterator[tuple[str, str]]:
    """Draw each loss of each run; yield the title and the path of each drawing."""
    for stage in chain:
        for name, chart in loss_charts(stage.metrics).items():
            file = f"{_CURVES}/{stage.config.stage}-{name.replace('/', '-')}.svg"
            with atomic_file(output / file) as stream:
                stream.write(standalone(chart).encode())
            yield f"Loss `{name}` of stage {stage.config.stage}", file


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---" for _ in columns], *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
