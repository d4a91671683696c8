"""The configuration of a training run: what the command line resolves to, and `config.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro
import yaml

from etl.cli import UserError
from etl.storage.atomic import write_json
from model.presets import system
from model.spec import ModelSpec, Stage, System
from model.spec.system import InitStage
from pipeline.config.decode import decode
from pipeline.config.loggers import LoggerName, check_loggers
from pipeline.config.mix import Mix
from pipeline.config.overrides import override

StageName = Literal["init", "pt", "sft"]
FeatureCacheMode = Literal["auto", "always"]
Scale = Literal["full", "tiny"]
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A fully resolved run: reading it again reruns the run.

    Args:
        stage: which of the system's stages is trained.
        system: the model and the stages' settings, overrides included.
        data: folders of shards, in this order.
        output: the run folder.
        part: which part the stage `init` trains, where the system pre-trains several.
        init_from: the run whose trained weights this one starts from.
        weights: `random` needs neither hub nor folder for the frozen parts.
        seed: of new weights, of the order of samples and of every random draw.
        max_steps: ends the run early; the learning rate's schedule ends there, too.
        save_every: steps between checkpoints.
        keep_last: how many checkpoints stay.
        keep_every: steps of which the checkpoint at each multiple stays for good.
        num_workers: processes per rank that decode media; 0 does it in the rank itself.
        max_bad_fraction: the share of undecodable samples past which the run stops.
        log_every: steps between lines of progress where there is no terminal.
        log_to: where else the figures of every step go.
        mix: how often the data folders' rows come in an epoch.
        stall_seconds: without progress, after which a rank tells where it stands and ends.
        feature_cache: folder of features that frozen encoders have made, if they are to be kept.
        feature_cache_mode: `auto` uses it where that measures faster, `always` everywhere.
    """

    stage: StageName
    system: System
    data: tuple[str, ...]
    output: str
    part: str | None = None
    init_from: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    seed: int = 0
    max_steps: int | None = None
    save_every: int = 500
    keep_last: int = 2
    keep_every: int | None = None
    num_workers: int = 0
    max_bad_fraction: float = 0.01
    log_every: int = 10
    log_to: tuple[LoggerName, ...] = ()
    mix: Mix = field(default_factory=Mix)
    stall_seconds: float = 1200
    feature_cache: str | None = None
    feature_cache_mode: FeatureCacheMode = "auto"

    @property
    def settings(self) -> Stage:
        """The settings of the stage that is trained."""
        return self.system.stage(self.stage, self.part)

    def save(self, folder: Path) -> None:
        """Write `config.json` into a run folder."""
        write_json(folder / "config.json", asdict(self))


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train one stage of a preset under DeepSpeed; `--resume auto` goes on where it stopped."""

    preset: tyro.conf.Positional[str]
    """A preset's name (`python -m pipeline list`), or a run's config.json or .yaml."""
    data: tuple[Path, ...] = ()
    """Folders of Arrow shards, as the ETL jobs leave them."""
    output: Path | None = None
    """The run folder."""
    resume: str = "auto"
    """`auto`: from the newest sound checkpoint; `never`: refuse to; or the number of a step."""
    init_from: Path | None = None
    """A run whose trained weights (the projector of MM-PT, say) this one starts from."""
    part: str | None = None
    """Of the stage `init`: which part is trained, where the preset pre-trains several."""
    scale: Scale = "full"
    """`tiny`: the preset's classes and wiring with small sizes and random weights."""
    set: tuple[str, ...] = ()
    """Fields of the preset, PATH=JSON as `show` names them, say model.backbone.layers=8."""
    weights: Literal["pretrained", "random"] | None = None
    """Where the frozen weights come from; `random` needs no hub. Default: pretrained."""
    seed: int | None = None
    """Default: 0."""
    max_steps: int | None = None
    """End after so many optimizer steps."""
    save_every: int | None = None
    """Steps between checkpoints. Default: 500."""
    keep_last: int | None = None
    """How many checkpoints stay. Default: 2."""
    keep_every: int | None = None
    """Steps: the checkpoint at each multiple stays for good. Default: none does."""
    num_workers: int | None = None
    """Processes per rank that decode media. Default: 0, in the rank itself."""
    max_bad_fraction: float | None = None
    """Share of undecodable samples past which the run stops. Default: 0.01."""
    log_every: int | None = None
    """Steps between lines of progress where there is no terminal. Default: 10."""
    log_to: tuple[LoggerName, ...] = ()
    """Where else the figures of every step go. Default: nowhere else."""
    stall_seconds: float | None = None
    """Without progress, after which a rank tells where it stands and ends. Default: 1200."""
    feature_cache: Path | None = None
    """Where features of frozen encoders are kept: media that are in it are neither decoded nor
    encoded, others are added. `python -m pipeline features` fills it beforehand."""
    feature_cache_mode: FeatureCacheMode | None = None
    """`auto`: use --feature-cache where that measures faster on this machine, which takes seconds
    at the start; `always`. Default: auto."""
    mix: tuple[str, ...] = ()
    """How often a data folder's rows come in an epoch: FOLDER=2, FOLDER=0.5, or FOLDER=10% of
    all that is drawn."""
    mix_temperature: float | None = None
    """Above 1 draws folders nearer to each other in size. Default: 1."""
    mix_cap: float | None = None
    """How often a row may come in an epoch at most."""
    epochs: int | None = None
    """Overrides the preset's, as do the options below."""
    learning_rate: float | None = None
    global_batch: int | None = None
    """Samples per optimizer step over all ranks."""
    micro_batch: int | None = None
    """Samples per rank and forward pass."""
    ds_config: str | None = None
    """A file of ds_configs/ without its ending, or a path to DeepSpeed's own JSON."""
    precision: Literal["fp32", "bf16"] | None = None
    packing: Literal["auto", "off"] | None = None
    """`off` pads each sample to the longest of its pass."""


_STAGE_FIELDS = (
    "epochs",
    "learning_rate",
    "global_batch",
    "micro_batch",
    "ds_config",
    "precision",
    "packing",
)
_RUN_FIELDS = (
    "part",
    "weights",
    "seed",
    "max_steps",
    "save_every",
    "keep_last",
    "keep_every",
    "num_workers",
    "max_bad_fraction",
    "stall_seconds",
    "log_every",
    "feature_cache_mode",
)


def resolve(options: TrainOptions, stage: StageName) -> RunConfig:
    """Turn a command line into a run: preset or file first, then what was overridden.

    Raises:
        UserError: an unknown preset, a bad file or value, or no data or output.
    """
    if Path(options.preset).suffix in (".json", ".yaml", ".yml"):
        run = read_config(Path(options.preset))
        if run.stage != stage:
            raise UserError(f"{options.preset}: a run of stage {run.stage!r}, not {stage!r}")
    else:
        run = RunConfig(stage=stage, system=system(options.preset), data=(), output="")
    if options.scale == "tiny":
        if options.weights == "pretrained":
            raise UserError("--weights pretrained: there are none at --scale tiny, want random")
        run = replace(run, system=run.system.tiny(), weights="random")
    run = replace(run, system=override(run.system, options.set))
    changed = {name: getattr(options, name) for name in _RUN_FIELDS}
    run = replace(run, **{name: value for name, value in changed.items() if value is not None})
    stage_changed = {name: getattr(options, name) for name in _STAGE_FIELDS}
    settings = replace(
        run.settings, **{name: value for name, value in stage_changed.items() if value is not None}
    )
    run = replace(
        run,
        system=_with_stage(run.system, stage, settings),
        data=tuple(map(str, options.data)) or run.data,
        output=str(options.output or run.output),
        init_from=str(options.init_from) if options.init_from else run.init_from,
        feature_cache=str(options.feature_cache) if options.feature_cache else run.feature_cache,
        mix=_mix(options, run.mix),
        log_to=options.log_to or run.log_to,
    )
    _check(run)
    return run


def _mix(options: TrainOptions, given: Mix) -> Mix:
    temperature = options.mix_temperature
    return Mix(
        shares=options.mix or given.shares,
        temperature=given.temperature if temperature is None else temperature,
        cap=given.cap if options.mix_cap is None else options.mix_cap,
    )


def changed_preset(preset: str, scale: Scale, settings: Sequence[str]) -> System:
    """Return a preset at a scale, with fields set; raises SpecError for a name there is not."""
    whole = system(preset)
    return override(whole.tiny() if scale == "tiny" else whole, settings)


def _with_stage(whole: System, stage: StageName, settings: Stage) -> System:
    if isinstance(settings, InitStage):
        part = settings.objective.kind
        init = (settings if item.objective.kind == part else item for item in whole.init)
        return replace(whole, init=tuple(init))
    return replace(whole, pt=settings) if stage == "pt" else replace(whole, sft=settings)


def read_config(file: Path) -> RunConfig:
    """Read a run from JSON or YAML, strictly.

    Raises:
        UserError: no such file, not JSON or YAML, or a field that does not fit.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; want a preset's name or a run's configuration")
    try:
        value = json.loads(file.read_bytes()) if file.suffix == ".json" else None
        value = yaml.safe_load(file.read_text()) if value is None else value
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: {error}") from None
    return decode(RunConfig, value, file.name)


def _check(run: RunConfig) -> None:
    check_loggers(run.log_to)
    if not run.data:
        raise UserError("--data: name at least one folder of shards")
    if not run.output:
        raise UserError("--output: name the run folder")
    settings = run.settings
    positive: dict[str, float] = {
        "--save-every": run.save_every,
        "--keep-last": run.keep_last,
        "--log-every": run.log_every,
        "--epochs": settings.epochs,
        "--global-batch": settings.global_batch,
        "--micro-batch": settings.micro_batch,
        "--stall-seconds": run.stall_seconds,
    }
    for name, number in (("--max-steps", run.max_steps), ("--keep-every", run.keep_every)):
        if number is not None:
            positive[name] = number
    for option, value in positive.items():
        if value < 1:
            raise UserError(f"{option}: {value}, want 1 or more")
    if run.keep_every is not None and run.keep_every % run.save_every:
        near = -(-run.keep_every // run.save_every) * run.save_every
        raise UserError(
            f"--keep-every {run.keep_every}: no multiple of --save-every {run.save_every}, so "
            f"there is no such checkpoint; {near} would be"
        )


def accumulation(settings: Stage, ranks: int) -> int:
    """Return how many passes of whole micro-batches a rank needs for one optimizer step.

    Packed passes hold as many samples as there is room for, so those may be fewer.

    Raises:
        UserError: losses compare the samples of a pass, and the last one would be short.
    """
    per_pass = settings.micro_batch * ranks
    steps, rest = divmod(settings.global_batch, per_pass)
    if isinstance(settings, InitStage) and (rest or not steps):
        near = max(per_pass, settings.global_batch // per_pass * per_pass)
        raise UserError(
            f"global_batch {settings.global_batch} is no multiple of micro_batch "
            f"{settings.micro_batch} × {ranks} ranks; {near} would be"
        )
    return steps + bool(rest)


def packs(model: ModelSpec, stage: Stage) -> bool:
    """Return whether a stage lays samples end to end.

    Not where a loss looks at each row as a whole: before MM-PT, and beside a reference.
    """
    whole_rows = isinstance(stage, InitStage) or stage.reference is not None
    return stage.packing == "auto" and model.supports_packing and not whole_rows
