"""The configuration of a training run: its options, and the resolved `config.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from etl.cli import UserError, parse
from etl.storage.atomic import write_json
from model.spec import ModelSpec, SpecError, Stage, System
from model.spec.base import FieldError
from model.spec.system import InitStage, RlhfStage
from pipeline.config.decode import decode
from pipeline.config.files import CONFIG_FILE, leaves, older_file, read_mapping, read_preset
from pipeline.config.loggers import LoggerName, check_loggers
from pipeline.config.mix import Mix
from pipeline.config.older_versions import OlderVersionError, check_files
from pipeline.config.overrides import override

StageName = Literal["init", "pt", "sft", "rlhf"]
Scale = Literal["full", "tiny"]
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the command line and `config.json` share: all of a run but its system and stage."""

    data: tuple[str, ...] = ()
    """Folders of Arrow shards, as the ETL jobs write them."""
    output: str = ""
    """The run folder."""
    part: str | None = None
    """Of the stage `init`: the module to train, where the preset pre-trains several."""
    init_from: str | None = None
    """A run whose trained weights (such as the projector of MM-PT) this run starts from."""
    init_checkpoint: str = "newest"
    """Of that run: `newest`, `best` (by the loss of its validations), or the step of one."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """The frozen modules' weights; `random` needs neither a hub nor a folder."""
    seed: int = 0
    """Of new weights, the order of samples and all other random numbers."""
    max_steps: int | None = None
    """End after this many optimizer steps; the learning rate schedule ends there, too."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep_last: int = 2
    """How many of the newest checkpoints to keep."""
    keep_every: int | None = None
    """Never delete a checkpoint whose step is a multiple of this."""
    num_workers: int = 0
    """Processes per rank that decode media; 0 decodes in the rank itself."""
    max_bad_fraction: float = 0.01
    """Fraction of undecodable samples above which the run stops."""
    max_nonfinite_steps: int = 10
    """Steps in a row whose loss or gradient is not finite, after which the run stops. None of them
    changes the weights, and no checkpoint is written before a step is finite again."""
    log_every: int = 10
    """Steps between progress lines where there is no terminal."""
    validation_data: tuple[str, ...] = ()
    """Folders of held-out Arrow shards. Their losses and exact answers, with media and blind, are
    computed before the first step, every --validate-every steps and at the end; the checkpoint
    with the lowest loss is kept."""
    validate_every: int | None = None
    """Steps between validations. Default: --save-every."""
    validation_samples: int = 1024
    """At most so many samples of --validation-data, chosen by --seed; the same ones every time."""
    log_to: tuple[LoggerName, ...] = ()
    """Loggers that get the metrics of every step, too."""
    mix: Mix = field(default_factory=Mix)
    """How often the samples of each data folder come in an epoch."""
    stall_seconds: float = 1200
    """Seconds without progress after which a rank reports what it was doing and exits."""
    feature_cache: str | None = None
    """A feature cache of these data, which `python -m pipeline features` makes: features are read
    instead of decoding media and running frozen encoders."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunOptions):
    """The fully resolved configuration of a run: training from it again repeats the run.

    Args:
        stage: the stage of the system to train.
        system: the model and the settings of its stages, overrides included.
    """

    stage: StageName
    system: System

    @property
    def settings(self) -> Stage:
        """The settings of the stage to train."""
        return self.system.stage(self.stage, self.part)

    @property
    def validation_interval(self) -> int:
        """Steps between validations, if there are validation data."""
        return self.validate_every or self.save_every

    def save(self, folder: Path) -> None:
        """Write `config.json` into a run folder."""
        write_json(folder / CONFIG_FILE, asdict(self))


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """Which system: a preset, its scale, and changes of its fields."""

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]
    """A preset's name (`python -m pipeline list`), or a file: a preset as `show` and `compose`
    write it, a run's config.json, or what differs from a preset (docs/configuration.md)."""
    scale: Scale = "full"
    """`tiny`: the preset's architecture with small sizes and random weights."""
    set: tuple[str, ...] = ()
    """Fields of the preset, PATH=JSON as `show` names them, such as model.backbone.layers=8."""


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """Fields of the stage that have an option of their own; None stands for the preset's value."""

    epochs: int | None = None
    """Number of passes over the data."""
    learning_rate: float | None = None
    """The peak."""
    gradient_clipping: float | None = None
    """The largest norm of the gradient; a larger one is scaled down to it. 0 does not clip."""
    global_batch: int | None = None
    """Samples per optimizer step, over all ranks."""
    micro_batch: int | None = None
    """Samples per rank and forward pass."""
    ds_config: str | None = None
    """The name of a file in ds_configs/ without `.json`, or the path of a DeepSpeed JSON."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of the forward and backward pass."""
    packing: Literal["auto", "off"] | None = None
    """`off` pads each sample to the longest of its micro-batch."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(StageOptions, RunOptions, PresetOptions):
    """Train one stage of a preset under DeepSpeed; the same command resumes a stopped run.

    With a preset or a configuration before `--help`, the defaults shown are its own.
    """

    resume: str = "auto"
    """`auto`: from the newest valid checkpoint; `never`: an error if there is one; or the step of a
    checkpoint."""


def parse_train_options(stage: StageName, args: Sequence[str]) -> TrainOptions:
    """Read a command line; the values of the preset, or of the configuration, are the defaults.

    Raises:
        UserError, SpecError: a mistake of the user's.
    """
    prog = f"python -m pipeline {stage}"
    helps = [arg for arg in args if arg in ("-h", "--help")]
    try:
        chosen = parse(TrainOptions, prog=prog, args=[arg for arg in args if arg not in helps])
    except UserError:
        if not helps:
            raise
        return parse(TrainOptions, prog=prog, args=helps)
    default = default_options(chosen, stage, part=chosen.part)
    options = parse(TrainOptions, prog=prog, args=args, default=default)
    if options.scale == "tiny" and options.weights == "pretrained":
        raise UserError("--weights pretrained: --scale tiny has only random weights")
    return options


def default_options(chosen: PresetOptions, stage: StageName, *, part: str | None) -> TrainOptions:
    """Return the options whose values are those of a preset or of a configuration.

    Raises:
        UserError, SpecError: an unknown preset, a bad file, or no such stage or part.
    """
    base = _base_config(chosen, stage, part)
    settings = base.settings
    return TrainOptions(
        **{name: getattr(chosen, name) for name in _names(PresetOptions)},
        **{name: getattr(settings, name) for name in _names(StageOptions)},
        **{name: getattr(base, name) for name in _names(RunOptions)},
    )


def resolve(options: TrainOptions, stage: StageName) -> RunConfig:
    """Return the configuration of a run: a preset or a file, changed by the options.

    Args:
        options: with every value of the run: of `parse_train_options` or `default_options`, or, for
            a preset, whose runs have no values of their own, any.
        stage: to train.

    Raises:
        UserError, SpecError: an unknown preset, a bad file or value, or no data or output.
    """
    base = _base_config(options, stage, options.part)
    changed = {name: getattr(options, name) for name in _names(StageOptions)}
    given = {name: value for name, value in changed.items() if value is not None}
    try:
        settings = replace(base.settings, **given)
    except FieldError as error:
        raise UserError(f"--{error.field.replace('_', '-')}: {error.reason}") from None
    run = RunConfig(
        stage=stage,
        system=with_stage(base.system, stage, settings),
        **{name: getattr(options, name) for name in _names(RunOptions)},
    )
    run = replace(
        run,
        data=tuple(map(str, run.data)),
        output=str(run.output),
        validation_data=tuple(map(str, run.validation_data)),
        init_from=None if run.init_from is None else str(run.init_from),
        feature_cache=None if run.feature_cache is None else str(run.feature_cache),
        weights="random" if options.scale == "tiny" else run.weights,
    )
    _check(run)
    return run


def _names(options: type) -> list[str]:
    return [field.name for field in fields(options)]


def _base_config(options: PresetOptions, stage: StageName, part: str | None) -> RunConfig:
    """Return the configuration that `preset`, `scale` and `set` name, before the other options."""
    base, settings, given = read_preset(options.preset)
    if stage == "rlhf":
        base = base.with_rlhf()
        if given.get("stage") == "sft":
            # RLHF goes on from SFT: its configuration has the system, and data of another stage.
            given = {name: value for name, value in given.items() if name == "weights"}
    if given.get("stage", stage) != stage:
        raise UserError(f"{options.preset}: a run of stage {given['stage']!r}, not {stage!r}")
    own = _run_options(options.preset, given)
    run = RunConfig(
        stage=stage,
        system=_changed(base, [*settings, *options.set], options.scale),
        **{field: getattr(own, field) for field in _names(RunOptions)},
    )
    if options.scale == "tiny":
        run = replace(run, weights="random")
    return replace(run, part=part or run.part)


def _run_options(preset: str, given: Mapping[str, Any]) -> RunOptions:
    """Return the options of a run that the file of a preset has.

    Raises:
        UserError: an unknown name, or a value that does not fit.
    """
    try:
        fields = {key: value for key, value in given.items() if key != "stage"}
        return decode(RunOptions, fields, Path(preset).name)
    except OlderVersionError as error:
        raise older_file(Path(preset), error) from None


def changed_preset(preset: str, scale: Scale, settings: Sequence[str]) -> System:
    """Return a preset, of a name or a file, at a scale, with fields overridden.

    Raises:
        UserError, SpecError: an unknown preset, or a file or a field that does not fit.
    """
    base, own, given = read_preset(preset)
    _run_options(preset, given)
    return _changed(base, [*own, *settings], scale)


def _changed(base: System, settings: Sequence[str], scale: Scale) -> System:
    """Return a system with fields overridden, at a scale.

    Components that the settings bring become tiny like the others; numbers stay as they were set.
    """
    if any(setting.startswith("rlhf.") for setting in settings):
        base = base.with_rlhf()  # fields of a stage that the preset leaves to its default
    full = override(base, settings)
    return override(full.tiny(), leaves(settings)) if scale == "tiny" else full


def with_stage(base: System, stage: StageName, settings: Stage) -> System:
    """Return a system with other settings of a stage."""
    if isinstance(settings, InitStage):
        part = settings.objective.kind
        init = (settings if item.objective.kind == part else item for item in base.init)
        return replace(base, init=tuple(init))
    if stage == "rlhf":
        assert isinstance(settings, RlhfStage)
        return replace(base, rlhf=settings)
    return replace(base, pt=settings) if stage == "pt" else replace(base, sft=settings)


def read_run(folder: Path) -> RunConfig:
    """Read the configuration of a run folder; raises as `read_config` does.

    Raises:
        UserError: no such folder, or one that is not a run's.
    """
    if not (folder / CONFIG_FILE).is_file():
        what = "no run there" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; want the output of `pt` or `sft`, with {CONFIG_FILE}")
    return read_config(folder / CONFIG_FILE)


def read_config(file: Path) -> RunConfig:
    """Read a run's whole configuration from JSON or YAML, strictly.

    Raises:
        UserError: no such file, not JSON or YAML, a field that does not fit, or a configuration
            of an older version.
    """
    try:
        return decode(RunConfig, read_mapping(file), file.name)
    except OlderVersionError as error:
        raise older_file(file, error) from None


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
    if run.init_checkpoint != "newest" and run.init_from is None:
        raise UserError(f"--init-checkpoint {run.init_checkpoint}: want --init-from RUN beside it")
    positive: dict[str, float] = {
        "--save-every": run.save_every,
        "--keep-last": run.keep_last,
        "--log-every": run.log_every,
        "--stall-seconds": run.stall_seconds,
        "--max-nonfinite-steps": run.max_nonfinite_steps,
        "--validation-samples": run.validation_samples,
    }
    for name, number in (
        ("--max-steps", run.max_steps),
        ("--keep-every", run.keep_every),
        ("--validate-every", run.validate_every),
    ):
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
    _check_validation(run)


def _check_validation(run: RunConfig) -> None:
    if run.validate_every is not None and not run.validation_data:
        raise UserError(
            f"--validate-every {run.validate_every}: name held-out shards with --validation-data"
        )
    trained = {Path(folder).resolve() for folder in run.data}
    for folder in run.validation_data:
        if Path(folder).resolve() in trained:
            raise UserError(f"--validation-data {folder}: is in --data, too; want held-out shards")


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
