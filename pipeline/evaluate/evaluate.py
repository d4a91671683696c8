"""`python -m pipeline evaluate`: predictions and scores of a trained run as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

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
from pipeline.evaluate.exact_match import exact_match_table, score_exact_match
from pipeline.evaluate.generate_answers import generate_answers, without_media
from pipeline.evaluate.partial_predictions import PartialPredictions, writing
from pipeline.signals import STOPPED, StopRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Ask a trained run the last question of every sample, with and without its media."""

    run: Path
    """The run folder of a trained stage."""
    data: tuple[Path, ...]
    """Folders of Arrow shards whose samples end with the true answer."""
    output: Path | None = None
    """Folder for predictions and scores. Default: RUN/evaluation."""
    batch: int = 64
    """Questions per batch."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""
    limit: int | None = None
    """Ask only the first questions, at most so many."""
    json: bool = False
    """Print the scores as JSON instead of a table."""

    def __post_init__(self) -> None:
        for name in ("batch", "max_new_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')}: {value}, want at least 1")


def evaluate(args: Sequence[str]) -> int:
    """Run the command; returns the exit code, `STOPPED` if it was stopped and can resume."""
    stop = StopRequest()
    options = parse(EvaluateOptions, prog="python -m pipeline evaluate", args=args)
    config = read_config(options.run / "config.json")
    if isinstance(config.settings, InitStage):
        raise UserError(f"{options.run}: a run of stage init has no answers; want one of pt or sft")
    shards = ShardSet(options.data)
    # Chosen once: a run that is still training may save newer weights meanwhile.
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
    seeing, blind = (
        PartialPredictions(output / f"{name}.jsonl", identity | {"file": name}, options.batch)
        for name in ("predictions", "predictions_blind")
    )
    for predictions, view in ((seeing, lambda sample: sample), (blind, without_media)):
        questions = Questions(shards, number, view)
        _answer(config, model, questions, predictions, options, stop)
        if stop.asked:
            done = len(seeing.predictions) + len(blind.predictions)
            log.info("stopped on request after %d of %d answers; saved", done, 2 * number)
            return STOPPED
        predictions.finish()
    scores = score_exact_match(seeing.predictions, blind.predictions)
    with writing(output / "scores.json"):
        write_json(output / "scores.json", asdict(scores))
    for predictions in (seeing, blind):
        predictions.remove_partial()
    if options.json:
        sys.stdout.write(json.dumps(asdict(scores), indent=2) + "\n")
    else:
        Console().print(exact_match_table(scores))
    return 0


class Questions:
    """The first samples of a data set, read on demand, as the model is to see them.

    Args:
        samples: of the data set.
        number: how many of them.
        view: returns what the model sees of a sample.
    """

    def __init__(
        self, samples: Sequence[Sample] | ShardSet, number: int, view: Callable[[Sample], Sample]
    ) -> None:
        self._samples, self._number, self._view = samples, number, view

    def __len__(self) -> int:
        return self._number

    def batch(self, first: int, size: int) -> list[Sample]:
        """Return at most `size` samples, starting at `first`."""
        last = min(self._number, first + size)
        return [self._view(self._samples[index]) for index in range(first, last)]


def load_run(config: RunConfig, run: Path) -> MultimodalLM:
    """Build a run's model and load its newest valid weights."""
    return _load(config, newest_weights(run))


def _load(config: RunConfig, weights: Path) -> MultimodalLM:
    model = build(config.system.model, config.settings, weights=config.weights, seed=config.seed)
    load_trained(model, weights)
    return model


def _answer(
    config: RunConfig,
    model: MultimodalLM,
    questions: Questions,
    predictions: PartialPredictions,
    options: EvaluateOptions,
    stop: StopRequest,
) -> None:
    """Answer the remaining questions, a batch at a time, until done or stopped."""
    tokenizer = build_tokenizer(config.system.model, weights=config.weights)
    encoder = SampleEncoder(
        config.system.model,
        tokenizer,
        prompt=config.settings.prompt,
        max_tokens=config.settings.max_tokens,
        text_tokenizer=build_text_tokenizer(config.system.model, weights=config.weights),
    )
    with Progress(console=Console(stderr=True)) as progress:
        done = len(predictions.predictions)
        task = progress.add_task(predictions.path.stem, total=len(questions), completed=done)
        for first in range(done, len(questions), options.batch):
            if stop.asked:
                return
            samples = questions.batch(first, options.batch)
            try:
                answered = generate_answers(
                    model, tokenizer, encoder, samples, max_new_tokens=options.max_new_tokens
                )
            except SampleError as error:
                raise UserError(f"{', '.join(map(str, options.data))}: {error}") from None
            predictions.add(answered)
            progress.update(task, advance=len(answered))
