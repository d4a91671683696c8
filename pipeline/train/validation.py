"""Validation during training: losses and exact answers on held-out samples, with media and blind.

One forward pass gives both. An answer is exact if each of its tokens, the end included, is the most
likely one after those before it: then greedy decoding writes this answer, and otherwise another. So
nothing is generated, which under ZeRO-3 would take equally many tokens on every rank.

Shapes: o positions with a target, n samples of a micro-batch, v vocabulary.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError
from etl.storage.shards import ShardSet
from model.batch import Batch
from model.multimodal_lm import MultimodalOutput
from model.preference_lm import PreferenceOutput
from model.spec import Stage
from model.spec.rlhf import Grpo, RewardModel
from model.spec.system import InitStage, RlhfStage
from pipeline.config.mix import Mix
from pipeline.config.run_config import RunConfig
from pipeline.data.dataset import MultimodalDataset
from pipeline.data.encode import SampleEncoder
from pipeline.data.loader import MicroBatch, micro_batches
from pipeline.data.preferences import PreferenceEncoder, Role
from pipeline.data.rollout_prompts import RolloutEncoder
from pipeline.data.sampler import BatchSampler, build_sampler
from pipeline.distributed import device, rank_and_world_size
from pipeline.evaluate.generate_answers import without_media
from pipeline.train.loss_term import LossSum, LossTerm
from pipeline.train.losses import compute_losses
from pipeline.train.metrics import finite_or_none, samples_o, sum_by
from pipeline.train.seeding import seed_step
from pipeline.train.step_sync import StepSync

log = logging.getLogger(__name__)

SEEING, BLIND = "seeing", "blind"
TEXT, CHOSEN = "text", "chosen"
"""Losses of answers; in RLHF of the chosen ones, whatever its objective is."""


@dataclass(frozen=True, kw_only=True)
class ValidationMetrics:
    """One object of validation.jsonl.

    Args:
        step: after which the weights were validated; 0 before the first.
        samples, bad: used and skipped samples.
        loss: the weighted sum of `losses`, as in training.
        losses: by name, the mean over all samples; in RLHF also that of the chosen answers' text.
        accuracy: the fraction of exact last answers, in RLHF of the chosen ones; None in a stage
            without answers.
        blind: of the same samples without the media that the model sees: `samples`, `loss` (of the
            text) and `accuracy`. None in a stage without answers.
        data: identity of the validation samples; only losses on the same ones compare.
        seconds: wall time.
    """

    step: int
    samples: int
    bad: int
    loss: float
    losses: Mapping[str, float]
    accuracy: float | None
    blind: Mapping[str, float] | None
    data: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the object; null in place of numbers that are not finite, None left out."""
        valid: dict[str, Any] = finite_or_none(asdict(self))
        return {key: value for key, value in valid.items() if value is not None or key == "loss"}

    def __str__(self) -> str:
        """Return the metrics in a line of a log."""
        text = f"loss {self.loss:.4f}"
        if CHOSEN in self.losses:
            text += f", of chosen answers {self.losses[CHOSEN]:.4f}"
        if self.accuracy is not None:
            text += f", exact answers {self.accuracy:.1%}"
        if self.blind is not None:
            text += f" (blind: {self.blind['loss']:.4f}, {self.blind['accuracy']:.1%})"
        return f"validation after step {self.step}: {text}"


@dataclass(frozen=True, kw_only=True)
class ValidationData:
    """The validation samples, opened and checked.

    Args:
        shards: that hold them.
        sampler: which samples each rank gets; they are its whole stream.
        identity: of the samples.
    """

    shards: ShardSet
    sampler: BatchSampler
    identity: str


def open_validation(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> ValidationData | None:
    """Open a run's validation data; None if it has none.

    Raises:
        UserError, SpecError: as `build_sampler` does, or the stage trains on the policy's answers.
    """
    if not run.validation_data:
        return None
    settings = run.settings
    if isinstance(settings, RlhfStage) and isinstance(settings.objective, Grpo):
        raise UserError(
            "--validation-data: not with GRPO, which trains on the policy's own answers; evaluate "
            "its checkpoints instead: `evaluate --checkpoint STEP`, or `generate`"
        )
    rank, world = rank_and_world_size()
    folders = [Path(folder) for folder in run.validation_data]
    shards = ShardSet(folders, rank=rank, ranks=world, stamps=Path(run.output))
    sampler = build_sampler(replace(run, data=run.validation_data, mix=Mix()), tokenizer)
    limit = min(run.validation_samples, sampler.stream.samples_per_epoch)
    digest = hashlib.sha256(f"{shards.fingerprint} {limit} {run.seed}".encode())
    return ValidationData(
        shards=shards,
        sampler=replace(sampler, stream=replace(sampler.stream, limit=limit)),
        identity=digest.hexdigest()[:16],
    )


@dataclass(kw_only=True)
class _Scores:
    """The results of one view on this rank, then, gathered, of all ranks.

    Args:
        losses: sum and count by name of the loss.
        samples: by position in the stream: the sum of the answers' loss, the number of its targets,
            and whether the last answer is exact (None without one).
        bad: skipped samples, each with its reason.
    """

    losses: dict[str, tuple[float, float]]
    samples: dict[int, tuple[float, float, bool | None]]
    bad: list[str]

    def gathered(self) -> _Scores:
        """Return the results of all ranks; a collective."""
        ranks: list[_Scores] = [self] * dist.get_world_size()
        dist.all_gather_object(ranks, self)
        pairs = {name: [one.losses[name] for one in ranks] for name in self.losses}
        return _Scores(
            losses={
                name: (math.fsum(total for total, _ in own), math.fsum(count for _, count in own))
                for name, own in pairs.items()
            },
            samples={position: one for rank in ranks for position, one in rank.samples.items()},
            bad=[reason for rank in ranks for reason in rank.bad],
        )

    def of(self, positions: Mapping[int, object]) -> list[tuple[float, float, bool | None]]:
        """Return the results of the samples at these positions."""
        return [one for position, one in self.samples.items() if position in positions]


class Validation:
    """Validates an engine's weights; a run's validations are all of the same samples.

    Args:
        data: the samples.
        batches: by view, this rank's micro-batches of every step of the sampler, over and over.
        terms: the stage's loss terms.
        answers: the loss of its answers, see `answer_loss`.
        seed: of what the forward pass draws.
        every: steps between validations.
        last: step of the run, which is validated, too.
        done: a step that needs no other validation; None for none.
    """

    def __init__(
        self,
        data: ValidationData,
        batches: Mapping[str, Iterator[list[MicroBatch]]],
        terms: Sequence[LossTerm],
        *,
        answers: str | None,
        seed: int,
        every: int,
        last: int,
        done: int | None = None,
    ) -> None:
        self._data, self._batches, self._terms, self._answers = data, batches, terms, answers
        self._seed, self._every, self._last, self._done = seed, every, last, done
        self._warned = False

    def is_due(self, step: int) -> bool:
        """Whether the weights after a step are to be validated and have not been."""
        return step != self._done and (step % self._every == 0 or step == self._last)

    def run(
        self,
        engine: deepspeed.DeepSpeedEngine,
        step: int,
        sync: Callable[[list[MicroBatch]], StepSync],
        enter_phase: Callable[..., None],
    ) -> ValidationMetrics | None:
        """Validate the current weights; a collective. Changes neither weights nor optimizer.

        Args:
            engine: in training mode, before and afterwards.
            step: after which the weights are.
            sync: exchanges what the micro-batches hold; raises UserError for an unreadable shard.
            enter_phase: of the watchdog.

        Returns:
            The metrics, or None if a stop was requested meanwhile.

        Raises:
            UserError: none of the samples can be used.
        """
        started = time.perf_counter()
        found: dict[str, _Scores] = {}
        engine.eval()
        try:
            with torch.no_grad():
                for view in self._batches:
                    scores = self._pass(engine, view, sync, enter_phase)
                    if scores is None:
                        return None
                    found[view] = scores.gathered()
        finally:
            engine.train()
        self._done = step
        self._warn_of_bad(found[SEEING])
        return self._metrics(step, found, time.perf_counter() - started)

    def _pass(
        self,
        engine: deepspeed.DeepSpeedEngine,
        view: str,
        sync: Callable[[list[MicroBatch]], StepSync],
        enter_phase: Callable[..., None],
    ) -> _Scores | None:
        """Return this rank's results of one view; None after a stop request."""
        rank, world = dist.get_rank(), dist.get_world_size()
        sampler = self._data.sampler
        # Blind, only the text counts: what else is learnt may be about the media.
        terms = [term for term in self._terms if view == SEEING or term.name == TEXT]
        scores = _Scores(losses={term.name: (0, 0) for term in terms}, samples={}, bad=[])
        for number in range(sampler.steps):
            enter_phase("validation")
            items = next(self._batches[view])
            agreed = sync(items)
            if agreed.stop:
                return None
            seed_step(self._seed, number, rank)
            bins = [of_ranks[rank] for of_ranks in sampler.step(number, world)]
            for item, used, refs in zip(items, agreed.used, bins, strict=True):
                enter_phase("validation", samples=item.ids)
                bad = {one.position for one in item.bad}
                positions = [ref.position for ref in refs if ref.position not in bad]
                outputs = engine(item.batch.to(device()), used)
                losses = compute_losses(terms, outputs)
                _add(scores, item, losses)
                if self._answers is not None:
                    _add_answers(scores, item, positions, outputs, losses)
        return scores

    def _warn_of_bad(self, seeing: _Scores) -> None:
        """Log once how many samples are skipped, on rank 0.

        Raises:
            UserError: all are.
        """
        bad, number = seeing.bad, len(self._data.sampler.stream)
        if len(bad) == number:
            raise UserError(
                f"--validation-data: all {number} samples are unusable; first: {bad[0]}"
            )
        if bad and not self._warned and dist.get_rank() == 0:
            log.warning("validation: %d of %d samples skipped; first: %s", len(bad), number, bad[0])
        self._warned = True

    def _metrics(
        self, step: int, found: Mapping[str, _Scores], seconds: float
    ) -> ValidationMetrics:
        seeing = found[SEEING]
        losses = {name: total / max(1.0, count) for name, (total, count) in seeing.losses.items()}
        blind = None
        if self._answers is not None:
            both = found[BLIND].of(seeing.samples)
            blind = {"samples": len(both), "loss": _text_loss(both), "accuracy": _accuracy(both)}
            losses[self._answers] = _text_loss(list(seeing.samples.values()))
        return ValidationMetrics(
            step=step,
            samples=len(self._data.sampler.stream) - len(seeing.bad),
            bad=len(seeing.bad),
            loss=sum(term.weight * losses[term.name] for term in self._terms),
            losses=losses,
            accuracy=_accuracy(list(seeing.samples.values())) if blind else None,
            blind=blind,
            data=self._data.identity,
            seconds=seconds,
        )


def _text_loss(samples: Sequence[tuple[float, float, bool | None]]) -> float:
    """Return the mean over all targets, in whatever order the samples come."""
    targets = sum(count for _, count, _ in samples)
    return math.fsum(total for total, _, _ in samples) / max(1.0, targets)


def _accuracy(samples: Sequence[tuple[float, float, bool | None]]) -> float:
    exact = [one for _, _, one in samples if one is not None]
    return sum(exact) / max(1, len(exact))


def _add(scores: _Scores, item: MicroBatch, losses: Mapping[str, LossSum]) -> None:
    """Add the losses of a micro-batch of this rank, and the samples that cannot be used."""
    scores.bad += [one.reason for one in item.bad]
    for name, (total, count) in scores.losses.items():
        own = losses[name]
        scores.losses[name] = (total + float(own.total), count + own.count)


def _add_answers(
    scores: _Scores,
    item: MicroBatch,
    positions: Sequence[int],
    outputs: object,
    losses: Mapping[str, LossSum],
) -> None:
    """Add the results of each sample of a micro-batch of this rank."""
    owner_o, number = samples_o(item.batch), len(positions)
    loss_o, right_o = _losses_and_hits(item.batch, outputs, losses)
    counts_o, answered_o = _counting_targets(item.batch)
    answered_o = answered_o & counts_o
    total_n = sum_by(owner_o, loss_o * counts_o, number)
    targets_n, answered_n, wrong_n = (
        sum_by(owner_o, mask_o.double(), number)
        for mask_o in (counts_o, answered_o, answered_o & ~right_o)
    )
    rows = zip(positions, total_n, targets_n, answered_n, wrong_n, strict=True)
    for position, total, targets, answered, wrong in rows:
        exact = not wrong if answered else None
        scores.samples[position] = (float(total), float(targets), exact)


def _losses_and_hits(
    batch: Batch, outputs: object, losses: Mapping[str, LossSum]
) -> tuple[Tensor, Tensor]:
    """Return the loss (o,) of each target, and whether it is the most likely token; on the CPU."""
    if isinstance(outputs, PreferenceOutput):
        assert outputs.right_o is not None
        return -outputs.logps_o.double().cpu(), outputs.right_o.cpu()
    assert isinstance(outputs, MultimodalOutput)
    per_target_o = losses[TEXT].per_target_m
    assert per_target_o is not None
    return per_target_o.double().cpu(), outputs.logits_ov.argmax(-1).cpu() == batch.targets_o


def _counting_targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return which targets (o,) count, and which of them are a last answer's.

    Of the sequences of a preference those of the chosen answer count, without its refinement.
    """
    every_o = torch.ones_like(batch.targets_o, dtype=torch.bool)
    if batch.sequences is not None:
        owners_o = batch.sequences_bt[:, 1:][batch.target_mask]
        return batch.sequences.roles_q[owners_o] == Role.CHOSEN, every_o
    if batch.decoder_bs is not None:  # a decoder writes nothing but the last answer
        return every_o, every_o
    return every_o, ~batch.context_bt[:, 1:][batch.target_mask]


def answer_loss(stage: Stage) -> str | None:
    """Return the name of the loss of a stage's answers; None if it has none."""
    if isinstance(stage, RlhfStage):
        return None if isinstance(stage.objective, RewardModel) else CHOSEN
    return None if isinstance(stage, InitStage) else TEXT


def validation_batches(
    run: RunConfig,
    data: ValidationData,
    encoder: SampleEncoder | PreferenceEncoder | RolloutEncoder,
    pad_id: int,
) -> dict[str, Iterator[list[MicroBatch]]]:
    """Return this rank's micro-batches of the validation samples, over and over, by view.

    Both views have the same samples in the same micro-batches. Data workers, if there are any, are
    started with the first validation and stay.
    """
    rank, world = rank_and_world_size()
    load = partial(micro_batches, sampler=data.sampler, rank=rank, ranks=world, pad_id=pad_id)
    steps = data.sampler.steps
    views = {
        SEEING: load(
            MultimodalDataset(data.shards, encoder),
            steps=itertools.cycle(range(steps)),
            num_workers=run.num_workers,
        )
    }
    if answer_loss(run.settings) is not None:
        # Media that the assistant generates are not seen: they stay.
        keep = "assistant" if run.settings.generation is not None else ""
        blind = MultimodalDataset(data.shards, encoder, view=partial(without_media, keep=keep))
        views[BLIND] = load(blind, steps=itertools.cycle(range(steps)), num_workers=0)
    return views
