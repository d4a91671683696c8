"""The model card of an exported run: what it is, how to open it, its lineage, scores and curves.

The header is Hugging Face's (https://huggingface.co/docs/hub/model-cards): base models, licence
and evaluation results. `lineage.json` beside it has every shard with its checksum, and the options
of the jobs that made the data.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from etl.cli import UserError
from etl.report.charts import number, standalone
from etl.storage.atomic import atomic_file, write_json
from etl.storage.manifest import Manifest, read_manifest
from etl.storage.shards import ShardSet
from model.spec import System
from pipeline.checkpoint.files import step_of
from pipeline.config.files import CONFIG_FILE
from pipeline.config.run_config import RunConfig, read_config
from pipeline.run_folder.evaluation import EVALUATION
from pipeline.run_folder.metrics_writer import read_metrics
from pipeline.run_folder.report import loss_charts

log = logging.getLogger(__name__)

CARD = "README.md"
LINEAGE = "lineage.json"
_CURVES = "curves"
_LICENCE_ROWS = 10_000
"""About so many samples of a folder are searched for their licences."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One run of the chain that led to a model, with the folder it is in."""

    folder: Path
    config: RunConfig
    metrics: Sequence[Mapping[str, Any]]


def write_model_card(
    run: Path, config: RunConfig, checkpoint: Path, output: Path, *, usage: str, library: str
) -> None:
    """Write README.md, and the curves and the lineage behind it, into an exported folder.

    Args:
        run: the exported run.
        config: of the run.
        checkpoint: the exported one: steps after it, and scores of another one, are left out.
        output: the exported folder.
        usage: the Python that opens it.
        library: the library that opens it.
    """
    chain = _chain(run, config, step_of(checkpoint))
    scores = _read_scores(run, checkpoint)
    sources = [
        (stage, DataSource.read(Path(name))) for stage in chain for name in stage.config.data
    ]
    if sources:
        write_json(output / LINEAGE, [_lineage(stage, source) for stage, source in sources])
    curves = list(_write_curves(chain, output))
    sections = [
        _front_matter(config.system, scores, library),
        f"# {config.system.name}\n\n{_summary(config.system)}",
        f"## Use\n\n```python\n{usage.strip()}\n```",
        "## Parts\n\n"
        + _table(("part", "class", "weights from", "licence"), _parts(config.system)),
        "## Training\n\n" + _table(_STAGE_COLUMNS, map(_stage_row, chain)),
        _data(sources),
        _scores(scores),
        "## Curves\n\n" + "\n".join(f"![{title}]({file})" for title, file in curves)
        if curves
        else "",
    ]
    with atomic_file(output / CARD) as stream:
        stream.write(("\n\n".join(filter(None, sections)) + "\n").encode())


def _chain(run: Path, config: RunConfig, step: int) -> list[StageRun]:
    """Return the runs that led to a step of a run and still exist, the first one first."""
    metrics = [line for line in read_metrics(run) if line["step"] <= step]
    chain = [StageRun(folder=run, config=config, metrics=metrics)]
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


def _front_matter(system: System, scores: Mapping[str, Any], library: str) -> str:
    """Return the header that the Hub reads."""
    kinds = [kind for kind in system.model.modalities if kind in ("image", "video", "audio")]
    task = f"{kinds[0]}-text-to-text" if kinds else "text-generation"
    parts = [branch.encoder for branch in system.model.inputs]
    weights = [getattr(part, "weights", "") for part in (*parts, system.model.backbone)]
    licences = sorted({licence for name in weights if (licence := _licence(name))})
    header: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": task,
        "tags": ["mmloom", "multimodal"],
        # Of the Hub: "owner/name". A folder means nothing to others.
        "base_model": [
            name for name in weights if _HUB_NAME.fullmatch(name) and not Path(name).exists()
        ],
        "license": licences[0] if len(licences) == 1 else "",
        "model-index": _model_index(scores, system, task),
    }
    text = yaml.safe_dump({k: v for k, v in header.items() if v}, sort_keys=False, width=100)
    return f"---\n{text}---"


def _model_index(scores: Mapping[str, Any], system: System, task: str) -> list[dict[str, Any]]:
    """Return the scores of an evaluation as the Hub reads them; nothing if there are none."""
    dataset = scores.get("benchmark", "questions")
    count = scores.get("questions")
    named = f"{dataset} ({count} asked)" if isinstance(count, int) else str(dataset)
    metrics = [
        {"type": name, "value": round(value, 6), "name": name.replace("_", " ")}
        for name, value in scores.items()
        if isinstance(value, float)
    ]
    result = {
        "task": {"type": task},
        "dataset": {"type": str(dataset).lower(), "name": named},
        "metrics": metrics,
    }
    return [{"name": system.name, "results": [result]}] if metrics else []


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
        yield f"{branch.modality} encoder", encoder.kind, _public(weights), _licence(weights)
        yield f"{branch.modality} projector", branch.projector.kind, "trained here", ""
    yield (
        "language model",
        model.backbone.kind,
        _public(model.backbone.weights),
        _licence(model.backbone.weights),
    )


def _public(path: str | Path) -> str:
    """Return a name of the Hub as it is, of a folder its own: others have no use for its path."""
    return Path(path).name if Path(path).exists() or Path(path).is_absolute() else str(path)


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
        return stage.config.stage, _public(stage.folder), trained, "0", "0", "", ""
    first, last = metrics[0], metrics[-1]
    counts = (number(last["step"]), number(last["samples"]))
    losses = tuple(f"{entry['loss']:.4g}" for entry in (first, last))
    return stage.config.stage, _public(stage.folder), trained, *counts, *losses


_DATA_COLUMNS = (
    *("stage", "folder", "job", "corpus", "samples", "shards", "dropped", "options", "licences"),
)
_REASONS = 4


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A data folder of a run.

    Args:
        folder: its path.
        manifest: of the folder; None if it is gone.
    """

    folder: Path
    manifest: Manifest | None

    @classmethod
    def read(cls, folder: Path) -> DataSource:
        """Read the manifest of a folder, if it is still there."""
        try:
            return cls(folder=folder, manifest=read_manifest(folder))
        except UserError:
            return cls(folder=folder, manifest=None)

    @property
    def plans(self) -> list[Mapping[str, Any]]:
        """The plans of the jobs that made the folder, the last one first."""
        if self.manifest is None:
            return []
        earlier = self.manifest.details.get("input", {}).get("plan")
        return [plan for plan in (self.manifest.plan, earlier) if plan and "inputs" in plan]

    @property
    def corpora(self) -> list[str]:
        """The names of the files that the first of these jobs has read."""
        inputs = self.plans[-1]["inputs"] if self.plans else []
        return [Path(one["path"]).name for one in inputs]

    @property
    def dropped(self) -> str:
        """The most frequent reasons for which rows were dropped, with their numbers."""
        drops = Counter(self.manifest.drops if self.manifest else {}).most_common()
        words = [f"{reason} {number(count)}" for reason, count in drops[:_REASONS]]
        rest = sum(count for _, count in drops[_REASONS:])
        return ", ".join([*words, *([f"others {number(rest)}"] if rest else [])]) or "none"


def _data(sources: Sequence[tuple[StageRun, DataSource]]) -> str:
    if not sources:
        return ""
    table = _table(_DATA_COLUMNS, [_data_row(*pair) for pair in sources])
    return (
        f"## Data\n\n{table}\n\n"
        f"Every shard with its checksum, and the options of each job: [{LINEAGE}]({LINEAGE})."
    )


def _data_row(stage: StageRun, source: DataSource) -> tuple[str, ...]:
    """Return a row of the table of data; nearly empty if the folder is gone."""
    manifest = source.manifest
    if manifest is None:
        return stage.config.stage, _public(source.folder), *["no longer there"], *[""] * 6
    size = sum(shard.bytes for shard in manifest.shards)
    options = source.plans[0].get("config", {}) if source.plans else {}
    given = (f"{name}={value}" for name, value in options.items() if value not in _UNSET)
    return (
        stage.config.stage,
        _public(source.folder),
        manifest.job,
        ", ".join(source.corpora),
        number(manifest.rows),
        f"{number(len(manifest.shards))} ({size / 1e6:,.1f} MB)",
        source.dropped,
        ", ".join(given),
        _licences(source.folder),
    )


_UNSET: tuple[object, ...] = (None, False, "", [], {})


def _lineage(stage: StageRun, source: DataSource) -> dict[str, Any]:
    """Return all that the manifest of a data folder says of its origin, for `lineage.json`."""
    manifest = source.manifest
    entry: dict[str, Any] = {"stage": stage.config.stage, "folder": str(source.folder)}
    if manifest is None:
        return {**entry, "missing": True}
    return {
        **entry,
        **{"job": manifest.job, "plans": source.plans, "mix": list(stage.config.mix.shares)},
        **{"input_rows": manifest.input_rows, "rows": manifest.rows},
        "drops": dict(manifest.drops),
        "shards": [asdict(shard) for shard in manifest.shards],
        "licences": _licences(source.folder),
    }


def _licences(folder: Path) -> str:
    """Return the licences that the samples' lineage names, with how many samples each has."""
    counts: Counter[str] = Counter()
    for batch in ShardSet([folder], verify=False).batches(["lineage"]):
        counts.update(dict(row or ()).get("license", "") for row in batch["lineage"].to_pylist())
        if counts.total() >= _LICENCE_ROWS:
            break
    del counts[""]
    return ", ".join(f"{name} ({number(count)})" for name, count in counts.most_common(5))


def _read_scores(run: Path, checkpoint: Path) -> dict[str, Any]:
    """Return what an evaluation of the checkpoint has written; nothing if there is none."""
    file = run / EVALUATION / "scores.json"
    scores: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    if (evaluated := scores.get("checkpoint", checkpoint.name)) != checkpoint.name:
        log.warning(
            "%s: of %s, so the model card of %s is without scores; evaluate that checkpoint first",
            *(file, evaluated, checkpoint.name),
        )
        return {}
    return scores


def _scores(scores: Mapping[str, Any]) -> str:
    rows = [
        (name.replace("_", " "), f"{value:.4g}")
        for name, value in scores.items()
        if isinstance(value, int | float)
    ]
    return "## Evaluation\n\n" + _table(("score", "value"), rows) if rows else ""


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
