"""The configuration of a training run: its options, and the resolved `config.json`."""

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
from model.spec import ModelSpec, SpecError, Stage, System
from model.spec.system import InitStage
from pipeline.config.decode import decode
from pipeline.config.loggers import LoggerName, check_loggers
from pipeline.config.mix import Mix
from pipeline.config.older_versions import OlderVersionError, check_files
from pipeline.config.overrides import override

StageName = Literal["init", "pt", "sft"]
Scale = Literal["full", "tiny"]
REPOSITORY = Path(__file__).parents[2]
CONFIG_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The fully resolved configuration of a run: training from it again repeats the run.

    Args:
        stage: the stage of the system to train.
        system: the model and the settings of its stages, overrides included.
        data: folders of shards, in this order.
        output: the run folder.
        part: the module that the stage `init` trains, where the system pre-trains several.
        init_from: the run whose trained weights this run starts from.
        weights: of the frozen modules; `random` needs neither a hub nor a folder.
        seed: of new weights, the order of samples and all other random numbers.
        max_steps: ends the run early; the learning rate schedule ends there, too.
        save_every: steps between checkpoints.
        keep_last: the number of newest checkpoints to keep.
        keep_every: a checkpoint whose step is a multiple of this is never deleted.
        num_workers: processes per rank that decode media; 0 decodes in the rank itself.
        max_bad_fraction: the fraction of undecodable samples above which the run stops.
        log_every: steps between progress lines where there is no terminal.
        log_to: loggers that get the metrics of every step, too.
        mix: how often the samples of each data folder come in an epoch.
        stall_seconds: without progress, after which a rank reports what it was doing and exits.
        feature_cache: folder of the feature cache of frozen encoders; None for no cache.
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

    @property
    def settings(self) -> Stage:
        """The settings of the stage to train."""
        return self.system.stage(self.stage, self.part)

    def save(self, folder: Path) -> None:
        """Write `config.json` into a run folder."""
        write_json(folder / CONFIG_FILE, asdict(self))


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train one stage of a preset under DeepSpeed; the same command resumes a stopped run."""

    preset: tyro.conf.Positional[str]
    """A preset's name (`python -m pipeline list`), or a run's config.json or .yaml."""
    data: tuple[Path, ...] = ()
    """Folders of Arrow shards, as the ETL jobs write them."""
    output: Path | None = None
    """The run folder."""
    resume: str = "auto"
    """`auto`: from the newest valid checkpoint; `never`: refuse to; or a checkpoint's step."""
    init_from: Path | None = None
    """A run whose trained weights (such as the projector of MM-PT) this run starts from."""
    part: str | None = None
    """Of the stage `init`: the module to train, where the preset pre-trains several."""
    scale: Scale = "full"
    """`tiny`: the preset's architecture with small sizes and random weights."""
    set: tuple[str, ...] = ()
    """Fields of the preset, PATH=JSON as `show` names them, such as model.backbone.layers=8."""
    weights: Literal["pretrained", "random"] | None = None
    """The frozen modules' weights; `random` needs no hub. Default: pretrained."""
    seed: int | None = None
    """Default: 0."""
    max_steps: int | None = None
    """End after this many optimizer steps."""
    save_every: int | None = None
    """Steps between checkpoints. Default: 500."""
    keep_last: int | None = None
    """How many of the newest checkpoints to keep. Default: 2."""
    keep_every: int | None = None
    """Never delete a checkpoint whose step is a multiple of this. Default: delete them, too."""
    num_workers: int | None = None
    """Processes per rank that decode media. Default: 0, decode in the rank itself."""
    max_bad_fraction: float | None = None
    """Fraction of undecodable samples above which the run stops. Default: 0.01."""
    log_every: int | None = None
    """Steps between progress lines where there is no terminal. Default: 10."""
    log_to: tuple[LoggerName, ...] = ()
    """Loggers that get the metrics of every step, too. Default: none."""
    stall_seconds: float | None = None
    """Without progress, after which a rank reports what it was doing and exits. Default: 1200."""
    feature_cache: Path | None = None
    """A feature cache of these data, which `python -m pipeline features` makes: features are read
    instead of decoding media and running frozen encoders."""
    mix: tuple[str, ...] = ()
    """How often the samples of a data folder come in an epoch: FOLDER=2, FOLDER=0.5, or
    FOLDER=10% of all samples."""
    mix_temperature: float | None = None
    """Above 1 evens out the sizes of the folders. Default: 1."""
    mix_cap: float | None = None
    """The most times that a sample may come in an epoch."""
    epochs: int | None = None
    """Overrides the preset's value, as do the options below."""
    learning_rate: float | None = None
    global_batch: int | None = None
    """Samples per optimizer step, over all ranks."""
    micro_batch: int | None = None
    """Samples per rank and forward pass."""
    ds_config: str | None = None
    """The name of a file in ds_configs/ without `.json`, or the path of a DeepSpeed JSON."""
    precision: Literal["fp32", "bf16"] | None = None
    packing: Literal["auto", "off"] | None = None
    """`off` pads each sample to the longest of its micro-batch."""


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
)


def resolve(options: TrainOptions, stage: StageName) -> RunConfig:
    """Turn options into a configuration: the preset or file first, then the overrides.

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
            raise UserError("--weights pretrained: --scale tiny has only random weights")
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


def _mix(options: TrainOptions, base: Mix) -> Mix:
    temperature = options.mix_temperature
    return Mix(
        shares=options.mix or base.shares,
        temperature=base.temperature if temperature is None else temperature,
        cap=base.cap if options.mix_cap is None else options.mix_cap,
    )


def changed_preset(preset: str, scale: Scale, settings: Sequence[str]) -> System:
    """Return a preset at a scale, with fields overridden; SpecError for an unknown preset."""
    base = system(preset)
    return override(base.tiny() if scale == "tiny" else base, settings)


def _with_stage(base: System, stage: StageName, settings: Stage) -> System:
    if isinstance(settings, InitStage):
        part = settings.objective.kind
        init = (settings if item.objective.kind == part else item for item in base.init)
        return replace(base, init=tuple(init))
    return replace(base, pt=settings) if stage == "pt" else replace(base, sft=settings)


def read_config(file: Path) -> RunConfig:
    """Read a run's configuration from JSON or YAML, strictly.

    Raises:
        UserError: no such file, not JSON or YAML, a field that does not fit, or a configuration
            of an older version.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; want a preset's name or a run's configuration")
    try:
        value = json.loads(file.read_bytes()) if file.suffix == ".json" else None
        value = yaml.safe_load(file.read_text()) if value is None else value
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: {error}") from None
    try:
        return decode(RunConfig, value, file.name)
    except OlderVersionError as error:
        if file.name == CONFIG_FILE:
            raise OlderVersionError(file.parent, error.old, error.new) from None
        advice = "rename the key"
        raise OlderVersionError(file, error.old, error.new, advice=advice) from None


def check_run_folder(run: Path) -> None:
    """Raise OlderVersionError if an older version made a run folder; reads its config and files.

    A config that is invalid for another reason, or absent, is not this function's concern.
    """
    check_files(run)
    try:
        read_config(run / CONFIG_FILE)
    except OlderVersionError:
        raise
    except (UserError, SpecError):
        return


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
            f"--keep-every {run.keep_every}: not a multiple of --save-every {run.save_every}, so "
            f"there is no such checkpoint; {near} would be"
        )


def accumulation(settings: Stage, ranks: int) -> int:
    """Return the number of full micro-batches that a rank needs for one optimizer step.

    With packing a micro-batch holds as many samples as fit, so a step may need fewer.

    Raises:
        UserError: the losses compare the samples of a micro-batch, and the last would be short.
    """
    per_micro_step = settings.micro_batch * ranks
    micro_steps, rest = divmod(settings.global_batch, per_micro_step)
    if isinstance(settings, InitStage) and (rest or not micro_steps):
        near = max(per_micro_step, settings.global_batch // per_micro_step * per_micro_step)
        raise UserError(
            f"global_batch {settings.global_batch} is not a multiple of micro_batch "
            f"{settings.micro_batch} × {ranks} ranks; {near} would be"
        )
    return micro_steps + bool(rest)


def packs(model: ModelSpec, stage: Stage) -> bool:
    """Return whether a stage packs several samples into one sequence.

    Not where a loss needs one sample per sequence: before MM-PT, and with a reference P-Former.
    """
    one_sample = isinstance(stage, InitStage) or stage.reference is not None
    return stage.packing == "auto" and model.supports_packing and not one_sample
