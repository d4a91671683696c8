"""`python -m pipeline evaluate`: predictions and scores of a trained run as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError, parse
from etl.storage.atomic import atomic_file, file_sha256, write_json
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet
from model.build import build, build_text_tokenizer, build_tokenizer
from model.multimodal_lm import MultimodalLM
from model.sampling import GREEDY, Sampling
from model.spec.system import InitStage
from model.weights import load_trained
from pipeline.checkpoint.adapters import adapter_record, check_adapters
from pipeline.checkpoint.checkpoints import checkpoint_weights
from pipeline.config.run_config import RunConfig, read_run
from pipeline.data.encode import SampleEncoder
from pipeline.data.generation_targets import earlier_media
from pipeline.data.tokenize import warn_of_other_template
from pipeline.distributed import any_rank, init_distributed, rank_and_world_size, shared
from pipeline.evaluate.benchmark import BenchmarkSamples
from pipeline.evaluate.benchmark_results import benchmark_results, benchmark_tasks
from pipeline.evaluate.benchmarks import find_benchmark
from pipeline.evaluate.caption_scores import CaptionScores, score_captions
from pipeline.evaluate.device import FittingBatches, inference_device
from pipeline.evaluate.exact_match import captions_table, exact_match_table, score_exact_match
from pipeline.evaluate.examples import examples_table, write_examples
from pipeline.evaluate.generate_answers import Prediction, generate_answers, without_media
from pipeline.evaluate.judge import Judge, address_judge
from pipeline.evaluate.likelihood_retrieval import LikelihoodRetrieval
from pipeline.evaluate.option_likelihoods import Answer, choose_options, choose_or_generate
from pipeline.evaluate.partial_predictions import PartialPredictions, writing
from pipeline.evaluate.retrieval import evaluate_retrieval, retrieval_scores
from pipeline.evaluate.sampling_options import SamplingOptions
from pipeline.evaluate.shots import Shots, ShotsBy, SimilarMedia
from pipeline.evaluate.survey_table import survey_table
from pipeline.run_folder.evaluation import EVALUATION, EXAMPLES
from pipeline.run_folder.report import run_report
from pipeline.signals import STOPPED, StopRequest

log = logging.getLogger(__name__)

_LONGEST_WAIT = 7 * 24 * 3600.0
"""Seconds for which a rank that has answered its questions waits for the others."""

BAD_SAMPLES = "bad_samples.jsonl"
"""Of an evaluation: the id of each sample that could not be asked, and the reason."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SamplingOptions):
    """Ask a trained run the last question of every sample, with and without its media."""

    run: Path
    """The run folder of a trained stage."""
    checkpoint: str = "newest"
    """`newest`, `best` (by the loss of its validations), or the step of one."""
    data: tuple[Path, ...]
    """Folders of Arrow shards whose samples end with the true answer; or with --benchmark, the
    folder with its published files and images: of several, one each, or one that has a folder
    named after each."""
    benchmark: tuple[str, ...] = ()
    """Ask the questions of published benchmarks, and score them as their official scripts do."""
    choose: Literal["generation", "likelihood"] | None = None
    """Have the model write the letter of an option, or take the most likely option. Default: each
    benchmark's way."""
    judge: str | None = None
    """Of benchmarks that a language model grades: an OpenAI-compatible address, such as
    http://127.0.0.1:8000/v1."""
    judge_model: str = "gpt-4-0613"
    """The judge's name at that address."""
    output: Path | None = None
    """Folder for predictions, scores and a page. Default: RUN/evaluation, and the run's page."""
    batch: int = 64
    """Questions per batch; answered in smaller ones where they do not fit into memory."""
    max_new_tokens: int | None = None
    """Longest answer in tokens. Default: 32; of a benchmark its own, 128 or 1024."""
    limit: int | None = None
    """Ask only the first questions, at most so many."""
    shots: int = 0
    """In-context examples before each question, from --shots-data."""
    shots_data: tuple[Path, ...] = ()
    """Folders of Arrow shards with solved samples: others than those of --data."""
    shots_by: ShotsBy = "seed"
    """Choose examples at random, by --seed, or the ones with the most similar first medium."""
    retrieval: bool = False
    """Rank all texts for each medium, and all media for each text, by the text's likelihood,
    instead of asking: as many forward passes as media times texts."""
    json: bool = False
    """Print the scores as JSON instead of a table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "max_new_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')}: {value}, want at least 1")
        if self.shots < 0:
            raise UserError(f"--shots: {self.shots}, want at least 0")
        if bool(self.shots) != bool(self.shots_data):
            raise UserError("--shots N and --shots-data DIR: want both or neither")
        if self.retrieval and (self.benchmark or self.shots):
            raise UserError("--retrieval: goes with neither --benchmark nor --shots")


def evaluate(args: Sequence[str]) -> int:
    """Run the command; returns the exit code, `STOPPED` if it was stopped and can resume."""
    stop = StopRequest()
    options = parse(EvaluateOptions, prog="python -m pipeline evaluate", args=args)
    config = read_run(options.run)
    if isinstance(config.settings, InitStage):
        return _evaluate_init(config, options, stop)
    rank, world = rank_and_world_size()
    tasks = _tasks(options)
    pool = ShardSet(options.shots_data, stamps=options.run) if options.shots else None
    if world > 1:
        init_distributed(_LONGEST_WAIT)
    # Chosen once: a run that is still training may save newer weights meanwhile.
    weights = shared(checkpoint_weights(options.run, options.checkpoint))
    tokenizer = build_tokenizer(config.system.model, weights=config.weights)
    warn_of_other_template(config, tokenizer)
    model = load_checkpoint(config, weights)
    encoder = _encoder(config, tokenizer)
    if options.retrieval:
        retrieval = LikelihoodRetrieval(
            model,
            tokenizer,
            encoder,
            output=tasks[0].output,
            identity=_identity(tasks[0], weights, options),
            batch=options.batch,
            stopped=lambda: stop.asked,
        )
        return _evaluate_retrieval(tasks[0], retrieval, options)
    shots = None
    if pool is not None:
        similar = None
        if options.shots_by == "similarity":
            similar = SimilarMedia(pool, model, encoder)
        shots = Shots(pool, options.shots, seed=options.seed, similar=similar)
    results: list[dict[str, Any]] = []
    tables: list[RenderableType] = []
    for task in tasks:
        answer = _answer_function(model, tokenizer, encoder, task, Sampling.of(options))
        found = _evaluate(task, weights, answer, shots, options, stop)
        if found is None:
            return STOPPED
        results.append(found[0])
        tables.append(found[1])
    if rank:
        return 0
    survey = {column: one for result in results for column, one in result.get("survey", {}).items()}
    if survey:
        tables.append(survey_table(survey, str(options.run)))
    if options.json:
        value = results[0] if len(results) == 1 else {one["benchmark"]: one for one in results}
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
    else:
        Console().print(*tables)
    return 0


def _evaluate_init(config: RunConfig, options: EvaluateOptions, stop: StopRequest) -> int:
    """Evaluate a run of the stage `init`, which has no answers: retrieval by ITC."""
    if options.benchmark or options.shots:
        raise UserError(
            f"{options.run}: a run of stage init has no answers, only retrieval; want one of pt, "
            "sft or rlhf"
        )
    (task,) = _tasks(options)
    assert isinstance(task.samples, ShardSet)
    rank, world = rank_and_world_size()
    if world > 1:
        init_distributed(_LONGEST_WAIT)
    weights = shared(checkpoint_weights(options.run, options.checkpoint))
    found = evaluate_retrieval(
        config,
        weights,
        task.samples,
        batch=options.batch,
        limit=options.limit,
        stopped=lambda: stop.asked,
    )
    if found is None:
        log.info("stopped on request; the same command ranks from the start")
        return STOPPED
    if not rank:
        _report(*retrieval_scores(found), options)
    return 0


def _evaluate_retrieval(
    task: Task, retrieval: LikelihoodRetrieval, options: EvaluateOptions
) -> int:
    """Evaluate a model that writes text by retrieval."""
    number = min(len(task.samples), options.limit or len(task.samples))
    found = retrieval.recall([task.samples[row] for row in range(number)])
    if found is None:
        return STOPPED
    if not rank_and_world_size()[0]:
        _report(*retrieval_scores(found), options)
        retrieval.remove_partial()
    return 0


def _report(scores: Mapping[str, Any], table: RenderableType, options: EvaluateOptions) -> None:
    """Write the scores of a retrieval, and print them."""
    path = (options.output or options.run / EVALUATION) / "scores.json"
    with writing(path):
        write_json(path, scores)
    if options.json:
        sys.stdout.write(json.dumps(scores, indent=2) + "\n")
    else:
        Console().print(table)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is evaluated together.

    Args:
        samples: to be asked.
        output: folder for predictions, scores and examples.
        page: folder of the page, or None for the run's own.
        source: of the samples, for messages.
        max_new_tokens: longest answer.
    """

    samples: ShardSet | BenchmarkSamples
    output: Path
    page: Path | None
    source: str
    max_new_tokens: int


def _tasks(options: EvaluateOptions) -> list[Task]:
    """Open all data, so that what is missing is reported before the model is loaded."""
    output, page = options.output or options.run / EVALUATION, options.output
    if not options.benchmark:
        source = ", ".join(map(str, options.data))
        rank, world = rank_and_world_size()
        stamps = options.output or options.run
        shards = ShardSet(options.data, rank=rank, ranks=world, stamps=stamps)
        limit = options.max_new_tokens or 32
        return [Task(samples=shards, output=output, page=page, source=source, max_new_tokens=limit)]
    pairs = benchmark_tasks([find_benchmark(name) for name in options.benchmark], options.data)
    several = len(pairs) > 1
    return [
        Task(
            samples=BenchmarkSamples(benchmark, folder, options.limit, options.choose),
            output=output / benchmark.name if several else output,
            page=output / benchmark.name if several else page,
            source=str(folder),
            max_new_tokens=options.max_new_tokens or benchmark.max_new_tokens,
        )
        for benchmark, folder in pairs
    ]


def _evaluate(
    task: Task,
    weights: Path,
    answer: Answer,
    shots: Shots | None,
    options: EvaluateOptions,
    stop: StopRequest,
) -> tuple[dict[str, Any], RenderableType] | None:
    """Return the content of scores.json and a table of it; None if it was stopped."""
    samples, output, sampling = task.samples, task.output, Sampling.of(options)
    identity = _identity(task, weights, options) | {"max_new_tokens": task.max_new_tokens}
    if sampling != GREEDY:
        identity["sampling"] = asdict(sampling)
    if isinstance(samples, BenchmarkSamples):
        identity["by_likelihood"] = samples.by_likelihood
    if shots is not None:
        identity["shots"] = [shots.identity, options.shots, options.shots_by, options.seed]
    passes = _predict(task, answer, identity, stop, shots)
    if passes is None:
        return None
    if rank_and_world_size()[0]:
        return {}, ""  # rank 0 scores
    seeing, blind = passes
    asked = _asked(task, seeing.predictions, blind.predictions)
    cut = _warn_of_cut([seeing.predictions[i] for i in asked])
    scores, table = _score(
        task,
        [seeing.predictions[i] for i in asked],
        [blind.predictions[i] for i in asked],
        address_judge(options.judge, options.judge_model) if options.judge else None,
    )
    scores["checkpoint"] = weights.parent.name
    if isinstance(samples, ShardSet):
        scores["skipped"] = identity["questions"] - len(asked)
        scores["cut"] = cut
        captions = {
            name: _caption_scores(samples, [(i, one.predictions[i]) for i in asked])
            for name, one in (("scores", seeing), ("blind", blind))
        }
        if captions["scores"] is not None:
            scores["captions"] = {name: vars(one) for name, one in captions.items() if one}
            table = Group(table, captions_table(captions["scores"]))
    with writing(output / "scores.json"):
        write_json(output / "scores.json", scores)
    answers = {i: (seeing.predictions[i], blind.predictions[i]) for i in asked}
    with writing(output / EXAMPLES):
        source = f"{weights.parent.name} on {task.source}"
        write_examples(output / EXAMPLES, samples, answers, source=source)
        log.info("report: %s", run_report(options.run, task.page))
    for predictions in passes:
        predictions.remove_partial()
    return scores, Group(table, examples_table(answers))


def _identity(task: Task, weights: Path, options: EvaluateOptions) -> dict[str, Any]:
    """Return what an evaluation must have in common with another one that it resumes."""
    return {
        "weights": file_sha256(weights),
        "config": file_sha256(options.run / "config.json"),
        "data": task.samples.fingerprint,
        "questions": min(len(task.samples), options.limit or len(task.samples)),
        "batch": options.batch,
    }


def _predict(
    task: Task,
    answer: Answer,
    identity: Mapping[str, Any],
    stop: StopRequest,
    shots: Shots | None,
) -> tuple[PartialPredictions, PartialPredictions] | None:
    """Return the complete predictions with media and without; None if it was stopped."""
    number, batch = identity["questions"], identity["batch"]
    seeing, blind = (
        PartialPredictions(task.output / f"{name}.jsonl", {**identity, "file": name}, batch, number)
        for name in ("predictions", "predictions_blind")
    )
    prompt: Callable[[Sample], Sample] = shots or (lambda sample: sample)
    for predictions, view in (
        (seeing, prompt),
        (blind, lambda sample: without_media(prompt(sample))),
    ):
        _answer(answer, Questions(task.samples, number, view), predictions, batch, stop)
        if any_rank(stop.asked):
            done = len(seeing.predictions) + len(blind.predictions)
            log.info("stopped on request after %d of %d answers; saved", done, 2 * number)
            return None
        predictions.finish()
    return seeing, blind


def _warn_of_cut(asked: Sequence[Prediction]) -> int:
    """Return how many questions have media that the model takes in part only, and log it."""
    cut = [prediction for prediction in asked if prediction.cut]
    if cut:
        log.warning(
            "%s samples have media longer than the encoder takes; the first: sample %s, %s",
            f"{len(cut)} of {len(asked)}",
            cut[0].id,
            cut[0].cut,
        )
    return len(cut)


def _asked(
    task: Task,
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
    if isinstance(task.samples, ShardSet):
        for index, one in enumerate(seeing):
            if not one.truth.strip():
                reasons[index] = reasons[index] or f"sample {one.id}: has no answer"
    skipped = [(index, reason) for index, reason in reasons.items() if reason]
    if skipped and (isinstance(task.samples, BenchmarkSamples) or len(skipped) == len(seeing)):
        raise UserError(f"{task.source}: {skipped[0][1]} ({len(skipped)} of {len(seeing)} samples)")
    path = task.output / BAD_SAMPLES
    with writing(path), atomic_file(path) as stream:
        for index, reason in skipped:
            line = {"id": seeing[index].id, "reason": reason}
            stream.write(json.dumps(line).encode() + b"\n")
    if skipped:
        total = f"{len(skipped)} of {len(seeing)}"
        log.warning("%s samples skipped, see %s; the first: %s", total, path, skipped[0][1])
    return [index for index, reason in reasons.items() if not reason]


def _score(
    task: Task, seeing: Sequence[Prediction], blind: Sequence[Prediction], judge: Judge | None
) -> tuple[dict[str, Any], RenderableType]:
    """Return the content of scores.json, and a table of it."""
    if isinstance(task.samples, ShardSet):
        scores = score_exact_match(seeing, blind)
        return asdict(scores), exact_match_table(scores)
    return benchmark_results(task.samples, seeing, blind, task.output, judge)


def _caption_scores(
    samples: ShardSet, predictions: Sequence[tuple[int, Prediction]]
) -> CaptionScores | None:
    """Score the answers to questions that are media without a word, if there are any."""
    answers = []
    for index, one in predictions:
        media = samples[index].media if not one.question else ()
        if media:
            answers.append((" ".join(m.sha256 for m in media), one.answer, one.truth))
    return score_captions(answers) if answers else None


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


def load_run(config: RunConfig, run: Path) -> MultimodalLM:
    """Build a run's model, and load its newest weights."""
    return load_checkpoint(config, checkpoint_weights(run, "newest"))


def load_checkpoint(config: RunConfig, weights: Path, *, decoding: bool = False) -> MultimodalLM:
    """Build a run's model, with `decoding` to generate media, too, and load trained weights."""
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


def _encoder(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> SampleEncoder:
    """Return the encoder of a run's prompts."""
    spec, stage = config.system.model, config.settings
    return SampleEncoder(
        spec,
        tokenizer,
        prompt=stage.prompt,
        max_tokens=stage.max_tokens,
        text_tokenizer=build_text_tokenizer(spec, weights=config.weights),
        generation_targets=earlier_media(stage.output_branches(spec)),
        feedback=stage.answer_feedback,
    )


def _answer_function(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: SampleEncoder,
    task: Task,
    sampling: Sampling,
) -> Answer:
    """Return what answers a batch of samples, by generation or by likelihood."""
    generate = partial(
        generate_answers,
        model,
        tokenizer,
        encoder,
        max_new_tokens=task.max_new_tokens,
        sampling=sampling,
    )
    samples = task.samples
    if isinstance(samples, ShardSet) or not samples.by_likelihood:
        return generate
    options = {question.id: question.options for question in samples.questions}
    chosen = samples.benchmark.chosen
    choose = partial(choose_options, model, tokenizer, encoder, options=options, reply=chosen)
    return partial(choose_or_generate, choose, generate)


def _answer(
    answer: Answer,
    questions: Questions,
    predictions: PartialPredictions,
    batch: int,
    stop: StopRequest,
) -> None:
    """Answer this rank's remaining questions, a batch at a time, until done or stopped."""
    fitting = FittingBatches(batch)
    batches = predictions.remaining(len(questions))
    console = Console(stderr=True, quiet=rank_and_world_size()[0] != 0)
    with Progress(console=console) as progress:
        row = progress.add_task(predictions.path.stem, total=len(batches))
        for first in batches:
            if stop.asked:
                return
            predictions.add(first, fitting.map(answer, questions.batch(first, batch)))
            progress.advance(row)
