"""`python -m pipeline evaluate`: predictions and scores of a trained run as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from etl.cli import UserError, parse
from etl.storage.atomic import file_sha256, write_json
from etl.storage.schema import Sample, SampleError
from etl.storage.shards import ShardSet
from model.build import build, build_text_tokenizer, build_tokenizer
from model.multimodal_lm import MultimodalLM
from model.spec.system import InitStage
from model.weights import load_trained
from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.config.run_config import RunConfig, read_config
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.answered import Answered, writing
from pipeline.evaluate.answers import Prediction, answers, without_media
from pipeline.signals import STOPPED, StopRequest

log = logging.getLogger(__name__)

Sight = Callable[[Sample], Sample]
"""What of a sample the model is shown."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Ask a trained run the last question of every sample, with and without its media."""

    run: Path
    """The run folder of a trained stage."""
    data: tuple[Path, ...]
    """Folders of Arrow shards whose samples end with the true answer."""
    output: Path | None = None
    """Where predictions and scores go. Default: RUN/evaluation."""
    batch: int = 64
    """Questions answered together."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""
    limit: int | None = None
    """Ask only so many, from the start."""
    json: bool = False
    """Print the scores as JSON instead of a table."""

    def __post_init__(self) -> None:
        for name in ("batch", "max_new_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')}: {value}, want at least 1")


def evaluate(args: Sequence[str]) -> int:
    """Run the command; returns the exit code: `STOPPED` if it was asked to stop and can go on."""
    stop = StopRequest()
    options = parse(EvaluateOptions, prog="python -m pipeline evaluate", args=args)
    config = read_config(options.run / "config.json")
    if isinstance(config.settings, InitStage):
        raise UserError(f"{options.run}: of the stage init, which answers nothing; want pt or sft")
    shards = ShardSet(options.data)
    # Looked for once: a run that still trains may have newer ones before this model is built.
    weights = newest_weights(options.run)
    output = options.output or options.run / "evaluation"
    number = min(len(shards), options.limit or len(shards))
    identity = {
        "weights": file_sha256(weights),
        "config": file_sha256(options.run / "config.json"),
        "data": shards.fingerprint,
        "questions": number,
        "batch": options.batch,
        "max_new_tokens": options.max_new_tokens,
    }
    model = _load(config, weights)
    passes = [
        Answered(output / f"{name}.jsonl", identity | {"pass": name}, options.batch)
        for name in ("predictions", "predictions_blind")
    ]
    sights: tuple[Sight, ...] = (lambda sample: sample, without_media)
    for answered, sight in zip(passes, sights, strict=True):
        questions = Questions(shards, number, sight)
        _ask(config, model, questions, answered, options, stop)
        if stop.asked:
            told = sum(len(item.predictions) for item in passes)
            log.info("stopped on request after %d of %d answers; kept", told, 2 * number)
            return STOPPED
        answered.finish()
    seeing, blind = (answered.predictions for answered in passes)
    scores = score(seeing, blind)
    with writing(output / "scores.json"):
        write_json(output / "scores.json", asdict(scores))
    for answered in passes:
        answered.forget()
    if options.json:
        sys.stdout.write(json.dumps(asdict(scores), indent=2) + "\n")
    else:
        Console().print(_table(scores))
    return 0


class Questions:
    """The first samples of a data set as the model is to see them, read when they are asked for."""

    def __init__(self, shards: ShardSet, number: int, sight: Sight) -> None:
        self._shards, self._number, self._sight = shards, number, sight

    def __len__(self) -> int:
        return self._number

    def some(self, first: int, most: int) -> list[Sample]:
        """Return at most so many from one on."""
        last = min(self._number, first + most)
        return [self._sight(self._shards[index]) for index in range(first, last)]


def load_run(config: RunConfig, run: Path) -> MultimodalLM:
    """Build a run's model and load its newest sound trained weights."""
    return _load(config, newest_weights(run))


def _load(config: RunConfig, weights: Path) -> MultimodalLM:
    model = build(config.system.model, config.settings, weights=config.weights, seed=config.seed)
    load_trained(model, weights)
    return model


def _ask(
    config: RunConfig,
    model: MultimodalLM,
    questions: Questions,
    answered: Answered,
    options: EvaluateOptions,
    stop: StopRequest,
) -> None:
    """Ask what is not answered yet, a batch at a time, until all is or a stop is asked for."""
    tokenizer = build_tokenizer(config.system.model, weights=config.weights)
    encoder = SampleEncoder(
        config.system.model,
        tokenizer,
        prompt=config.settings.prompt,
        max_tokens=config.settings.max_tokens,
        text_tokenizer=build_text_tokenizer(config.system.model, weights=config.weights),
    )
    with Progress(console=Console(stderr=True)) as progress:
        done = len(answered.predictions)
        task = progress.add_task(answered.path.stem, total=len(questions), completed=done)
        for first in range(done, len(questions), options.batch):
            if stop.asked:
                return
            samples = questions.some(first, options.batch)
            try:
                found = answers(
                    model, tokenizer, encoder, samples, max_new_tokens=options.max_new_tokens
                )
            except SampleError as error:
                raise UserError(f"{', '.join(map(str, options.data))}: {error}") from None
            answered.add(found)
            progress.update(task, advance=len(found))


@dataclass(frozen=True, kw_only=True)
class Score:
    """Shares of exact answers among a number of questions.

    Chance is what one gets right by giving the commonest true answer to every question of its
    kind.
    """

    questions: int
    accuracy: float
    blind: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class Scores(Score):
    """The scores of all questions, and of each kind of question."""

    kinds: Mapping[str, Score]


def score(seeing: Sequence[Prediction], blind: Sequence[Prediction]) -> Scores:
    """Compare exact answers with those of the same model without its media, and with chance."""
    kinds: dict[str, Score] = {}
    for kind in sorted({prediction.kind for prediction in seeing}):
        mine = [prediction for prediction in seeing if prediction.kind == kind]
        kinds[kind] = Score(
            questions=len(mine),
            accuracy=_share(mine),
            blind=_share([prediction for prediction in blind if prediction.kind == kind]),
            chance=Counter(p.truth for p in mine).most_common(1)[0][1] / len(mine),
        )
    return Scores(
        questions=len(seeing),
        accuracy=_share(seeing),
        blind=_share(blind),
        chance=sum(kind.chance * kind.questions for kind in kinds.values()) / len(seeing),
        kinds=kinds,
    )


def _share(predictions: Sequence[Prediction]) -> float:
    return sum(prediction.right for prediction in predictions) / len(predictions)


def _table(scores: Scores) -> Table:
    table = Table("kind", "questions", "accuracy", "blind", "chance")
    for kind, row in [*scores.kinds.items(), ("all", scores)]:
        shares = (f"{share:.3f}" for share in (row.accuracy, row.blind, row.chance))
        table.add_row(kind or "–", str(row.questions), *shares)
    return table
