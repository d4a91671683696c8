"""`python -m pipeline evaluate`: predictions and scores of a trained run as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError, parse
from etl.storage.atomic import atomic_file, file_sha256, write_json
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet
from model.build import build, build_text_tokenizer, build_tokenizer
from model.multimodal_lm import MultimodalLM
from model.spec.system import InitStage
from model.weights import load_trained
from pipeline.checkpoint.adapters import adapter_record, check_adapters
from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.config.run_config import RunConfig, read_run
from pipeline.data.encode import SampleEncoder
from pipeline.data.tokenize import warn_of_other_template
from pipeline.evaluate.benchmark import BenchmarkSamples, benchmark_table
from pipeline.evaluate.benchmarks import find_benchmark
from pipeline.evaluate.device import FittingBatches, inference_device
from pipeline.evaluate.exact_match import exact_match_table, score_exact_match
from pipeline.evaluate.examples import examples_table, write_examples
from pipeline.evaluate.generate_answers import Prediction, generate_answers, without_media
from pipeline.evaluate.metrics import values
from pipeline.evaluate.partial_predictions import PartialPredictions, writing
from pipeline.run_folder.evaluation import EVALUATION, EXAMPLES
from pipeline.run_folder.report import run_report
from pipeline.signals import STOPPED, StopRequest

log = logging.getLogger(__name__)

BAD_SAMPLES = "bad_samples.jsonl"
"""Of an evaluation: the id of each sample that could not be asked, and the reason."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Ask a trained run the last question of every sample, with and without its media."""

    run: Path
    """The run folder of a trained stage."""
    data: tuple[Path, ...]
    """Folders of Arrow shards whose samples end with the true answer; or with --benchmark, the
    folder with its published files and images."""
    benchmark: str | None = None
    """Ask the questions of a published benchmark, and score them as its official script does."""
    output: Path | None = None
    """Folder for predictions, scores and a page. Default: RUN/evaluation, and the run's page."""
    batch: int = 64
    """Questions per batch; answered in smaller ones where they do not fit into memory."""
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
    config = read_run(options.run)
    if isinstance(config.settings, InitStage):
        raise UserError(f"{options.run}: a run of stage init has no answers; want one of pt or sft")
    samples = _open_samples(options)
    # Chosen once: a run that is still training may save newer weights meanwhile.
    weights = newest_weights(options.run)
    output = options.output or options.run / EVALUATION
    number = min(len(samples), options.limit or len(samples))
    identity = {
        "weights": file_sha256(weights),
        "config": file_sha256(options.run / "config.json"),
        "data": samples.fingerprint,
        "questions": number,
        "batch": options.batch,
        "max_new_tokens": options.max_new_tokens,
    }
    tokenizer = build_tokenizer(config.system.model, weights=config.weights)
    warn_of_other_template(config, tokenizer)
    model = _load(config, weights)
    seeing, blind = (
        PartialPredictions(output / f"{name}.jsonl", identity | {"file": name}, options.batch)
        for name in ("predictions", "predictions_blind")
    )
    for predictions, view in ((seeing, lambda sample: sample), (blind, without_media)):
        questions = Questions(samples, number, view)
        _answer(config, model, tokenizer, questions, predictions, options, stop)
        if stop.asked:
            done = len(seeing.predictions) + len(blind.predictions)
            log.info("stopped on request after %d of %d answers; saved", done, 2 * number)
            return STOPPED
        predictions.finish()
    asked = _asked(options, samples, seeing.predictions, blind.predictions)
    cut = [seeing.predictions[i] for i in asked if seeing.predictions[i].cut]
    if cut:
        total = f"{len(cut)} of {len(asked)}"
        log.warning(
            "%s samples have media longer than the encoder takes; the first: sample %s, %s",
            total,
            cut[0].id,
            cut[0].cut,
        )
    scores, table = _score(
        samples, [seeing.predictions[i] for i in asked], [blind.predictions[i] for i in asked]
    )
    if isinstance(samples, ShardSet):
        scores["skipped"] = number - len(asked)
        scores["cut"] = len(cut)
    with writing(output / "scores.json"):
        write_json(output / "scores.json", scores)
    answers = {i: (seeing.predictions[i], blind.predictions[i]) for i in asked}
    with writing(output / EXAMPLES):
        source = f"{weights.parent.name} on {', '.join(map(str, options.data))}"
        write_examples(output / EXAMPLES, samples, answers, source=source)
        log.info("report: %s", run_report(options.run, options.output))
    for predictions in (seeing, blind):
        predictions.remove_partial()
    if options.json:
        sys.stdout.write(json.dumps(scores, indent=2) + "\n")
    else:
        Console().print(table, examples_table(answers))
    return 0


def _open_samples(options: EvaluateOptions) -> ShardSet | BenchmarkSamples:
    if options.benchmark is None:
        return ShardSet(options.data, stamps=options.output or options.run)
    benchmark = find_benchmark(options.benchmark)
    if len(options.data) != 1:
        raise UserError(f"--data: {len(options.data)} folders, want one for --benchmark")
    return BenchmarkSamples(benchmark, options.data[0], options.limit)


def _asked(
    options: EvaluateOptions,
    samples: ShardSet | BenchmarkSamples,
    seeing: Sequence[Prediction],
    blind: Sequence[Prediction],
) -> list[int]:
    """Return which samples were asked in both passes; write down and log the others.

    Raises:
        UserError: none was, or a benchmark's question was not: its score is of all.
    """
    reasons = {
        index: one.skip_reason or other.skip_reason
        for index, (one, other) in enumerate(zip(seeing, blind, strict=True))
    }
    if isinstance(samples, ShardSet):
        for index, one in enumerate(seeing):
            if not one.truth.strip():
                reasons[index] = reasons[index] or f"sample {one.id}: has no answer"
    skipped = [(index, reason) for index, reason in reasons.items() if reason]
    data = ", ".join(map(str, options.data))
    if skipped and (isinstance(samples, BenchmarkSamples) or len(skipped) == len(seeing)):
        raise UserError(f"{data}: {skipped[0][1]} ({len(skipped)} of {len(seeing)} samples)")
    path = (options.output or options.run / EVALUATION) / BAD_SAMPLES
    with writing(path), atomic_file(path) as stream:
        for index, reason in skipped:
            line = {"id": seeing[index].id, "reason": reason}
            stream.write(json.dumps(line).encode() + b"\n")
    if skipped:
        total = f"{len(skipped)} of {len(seeing)}"
        log.warning("%s samples skipped, see %s; the first: %s", total, path, skipped[0][1])
    return [index for index, reason in reasons.items() if not reason]


def _score(
    samples: ShardSet | BenchmarkSamples,
    seeing: Sequence[Prediction],
    blind: Sequence[Prediction],
) -> tuple[dict[str, Any], RenderableType]:
    """Return the content of scores.json, and a table of it."""
    if isinstance(samples, ShardSet):
        scores = score_exact_match(seeing, blind)
        return asdict(scores), exact_match_table(scores)
    benchmark = samples.benchmark
    benchmark_scores, blind_scores = (
        values(
            benchmark.metrics(
                [
                    (question, benchmark.prediction(question, prediction.answer))
                    for question, prediction in zip(samples.questions, predictions, strict=True)
                ]
            )
        )
        for predictions in (seeing, blind)
    )
    value = {
        "benchmark": samples.benchmark.name,
        "questions": len(samples),
        "scores": benchmark_scores,
        "blind": blind_scores,
    }
    return value, benchmark_table(benchmark_scores)


class Questions:
    """The first samples of a data set, read on demand, as the model is to see them.

    Args:
        samples: of the data set.
        number: how many of them.
        view: returns what the model sees of a sample.
    """

    def __init__(
        self,
        samples: ShardSet | BenchmarkSamples,
        number: int,
        view: Callable[[Sample], Sample],
    ) -> None:
        self._samples, self._number, self._view = samples, number, view

    def __len__(self) -> int:
        return self._number

    def batch(self, first: int, size: int) -> list[Sample]:
        """Return at most `size` samples, starting at `first`."""
        last = min(self._number, first + size)
        return [self._view(self._samples[index]) for index in range(first, last)]


def load_run(config: RunConfig, run: Path, *, decoding: bool = False) -> MultimodalLM:
    """Build a run's model, which can draw with `decoding`, and load its newest valid weights."""
    return _load(config, newest_weights(run), decoding=decoding)


def _load(config: RunConfig, weights: Path, *, decoding: bool = False) -> MultimodalLM:
    model = build(
        config.system.model,
        config.settings,
        weights=config.weights,
        seed=config.seed,
        decoding=decoding,
    )
    check_adapters(weights, adapter_record(config, model))
    load_trained(model, weights)
    return model.to(inference_device())


def _answer(
    config: RunConfig,
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    predictions: PartialPredictions,
    options: EvaluateOptions,
    stop: StopRequest,
) -> None:
    """Answer the remaining questions, a batch at a time, until done or stopped."""
    encoder = SampleEncoder(
        config.system.model,
        tokenizer,
        prompt=config.settings.prompt,
        max_tokens=config.settings.max_tokens,
        text_tokenizer=build_text_tokenizer(config.system.model, weights=config.weights),
    )
    answer = partial(
        generate_answers, model, tokenizer, encoder, max_new_tokens=options.max_new_tokens
    )
    fitting = FittingBatches(options.batch)
    with Progress(console=Console(stderr=True)) as progress:
        done = len(predictions.predictions)
        task = progress.add_task(predictions.path.stem, total=len(questions), completed=done)
        for first in range(done, len(questions), options.batch):
            if stop.asked:
                return
            answered = fitting.map(answer, questions.batch(first, options.batch))
            predictions.add(answered)
            progress.update(task, advance=len(answered))
