"""The step loop of every stage: data, sync, forward, backward, optimizer step, metrics, save."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import deepspeed
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from etl.cli import UserError
from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.compat.deepspeed import clear_gradients
from pipeline.config.trainer_state import TrainerState
from pipeline.data.loader import MicroBatch
from pipeline.distributed import device
from pipeline.run_folder.metrics_writer import MetricsWriter
from pipeline.signals import StopRequest
from pipeline.train.engine import learning_rates
from pipeline.train.loss_term import LossTerm
from pipeline.train.losses import compute_losses
from pipeline.train.metrics import MetricsAccumulator, StepMetrics
from pipeline.train.progress import ProgressLine
from pipeline.train.seeding import seed_step
from pipeline.train.step_sync import StepSync, sync_step
from pipeline.train.validation import Validation, ValidationMetrics
from pipeline.train.watchdog import PhaseTracker

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The settings of the step loop.

    Args:
        name: of the run, for the progress bar.
        losses: the stage's loss terms.
        kinds: of media in the stage (`Stage.kinds`).
        steps: optimizer steps of the whole run.
        save_every: steps between checkpoints.
        log_every: steps between progress lines where there is no terminal.
        seed: of the random numbers of a step.
        max_bad_fraction: the fraction of unusable samples above which the run stops.
        max_nonfinite_steps: steps in a row without a finite loss and gradient that end the run.
        updates: of the optimizer in a step, all with the same micro-batches.
    """

    name: str
    losses: tuple[LossTerm, ...]
    kinds: tuple[str, ...]
    steps: int
    save_every: int
    log_every: int
    seed: int
    max_bad_fraction: float
    max_nonfinite_steps: int
    updates: int = 1


@dataclass(kw_only=True)
class TrainingLoop:
    """Trains an engine step by step; every method is a collective.

    Args:
        engine: DeepSpeed's.
        settings: of the loop.
        checkpoints: of the run.
        writer: of metrics.jsonl and bad_samples.jsonl.
        accumulator: of the metrics of a step.
        phases: what this rank is doing, for the watchdog.
        stop: whether this process was asked to stop.
        validation: on held-out samples; None without.
    """

    engine: deepspeed.DeepSpeedEngine
    settings: LoopSettings
    checkpoints: Checkpoints
    writer: MetricsWriter
    accumulator: MetricsAccumulator
    phases: PhaseTracker
    stop: StopRequest
    validation: Validation | None = None

    def run(self, batches: Iterator[list[MicroBatch]], state: TrainerState) -> TrainerState:
        """Train to the last step, or until asked to stop.

        Args:
            batches: this rank's micro-batches of each step, from `state` on.
            state: the progress so far.

        Returns:
            The progress that is saved: short of the last step after a stop request.

        Raises:
            UserError: too many samples are unusable, too many steps are not finite, or a shard
                cannot be read.
        """
        self.engine.train()
        saved_step, stopping = state.step, False
        nonfinite = 0  # steps in a row
        with self._progress(state) as progress:
            stopping = self._validate_first(state)
            self.phases.take_seconds()  # the time before the first step belongs to no step
            while state.step < self.settings.steps and not stopping:
                self.phases.enter_phase("data", step=state.step + 1)
                started = time.perf_counter()
                items = next(batches)
                data_wait = time.perf_counter() - started
                sync = self._sync(items)
                if sync.unreadable:
                    self._save_and_raise(items, state, state.step if nonfinite else saved_step)
                if sync.bad:
                    self.writer.bad(state.step + 1, _gather(items, "bad"))
                if sync.cut:
                    self.writer.cut(state.step + 1, _gather(items, "cut"))
                seed_step(self.settings.seed, state.step, dist.get_rank())
                applied = self._train_step(items, sync)
                self.phases.enter_phase("metrics")
                losses = _means(self.accumulator.gather(), sync)
                state = _advance(state, sync, skipped=not applied)
                seconds = time.perf_counter() - started
                metrics = self._metrics(state, sync, losses, seconds, data_wait)
                self.writer.step(metrics.to_json())
                progress.step(
                    state.step, loss=metrics.loss, tokens_per_second=metrics.tokens_per_second
                )
                self.writer.check_bad(state, self.settings.max_bad_fraction)
                nonfinite = 0 if metrics.is_finite else nonfinite + 1
                saved = state.step if nonfinite else saved_step
                validation = None if sync.stop else self._validate(state, saved)
                stopping = self._left_out(state) or sync.stop
                if nonfinite:
                    self._report_nonfinite(metrics, nonfinite, stopping=stopping)
                elif self._save_if_due(state, validation, stopping=stopping):
                    saved_step = state.step
        return replace(state, step=self.checkpoints.newest_step) if nonfinite else state

    def _validate_first(self, state: TrainerState) -> bool:
        """Validate the weights that a run starts from, or that a stopped one did not get to.

        Returns:
            Whether a stop was requested meanwhile.
        """
        validation = self._compute_validation(state, state.step)
        if validation is not None:
            result = validation.to_json()
            if state.step and self.checkpoints.is_best(result):
                # Again, now with its validation; a run that is killed before the record repeats it.
                self.phases.enter_phase("save")
                self.checkpoints.save(self.engine, state, result)
                self.checkpoints.finish()
            self._record(validation)
        return self._left_out(state)

    def _validate(self, state: TrainerState, saved: int) -> ValidationMetrics | None:
        """Validate as `_compute_validation` does, and record the result."""
        validation = self._compute_validation(state, saved)
        if validation is not None:
            self._record(validation)
        return validation

    def _compute_validation(self, state: TrainerState, saved: int) -> ValidationMetrics | None:
        """Validate if that is due; None if it is not, or if a stop was requested meanwhile.

        Args:
            state: the progress so far.
            saved: the step of the newest checkpoint, for the case that a shard cannot be read.
        """
        if self.validation is None or not self.validation.is_due(state.step):
            return None

        def sync(items: list[MicroBatch]) -> StepSync:
            agreed = self._sync(items)
            if agreed.unreadable:
                self._save_and_raise(items, state, saved)
            return agreed

        return self.validation.run(self.engine, state.step, sync, self.phases.enter_phase)

    def _record(self, validation: ValidationMetrics) -> None:
        self.writer.validation(validation.to_json())
        if dist.get_rank() == 0:
            log.info("%s", validation)

    def is_complete(self, state: TrainerState) -> bool:
        """Whether the last step is done, and its validation."""
        return state.step == self.settings.steps and not self._is_validation_due(state)

    def _is_validation_due(self, state: TrainerState) -> bool:
        return self.validation is not None and self.validation.is_due(state.step)

    def _left_out(self, state: TrainerState) -> bool:
        """Whether a validation was left out since a stop was requested; log it."""
        if not self._is_validation_due(state):
            return False
        if dist.get_rank() == 0:
            log.info("stopping on request: no validation after step %d yet", state.step)
        return True

    def _report_nonfinite(self, metrics: StepMetrics, count: int, *, stopping: bool) -> None:
        """Log a step that is not finite, alike on all ranks; no checkpoint is written after it.

        Raises:
            UserError: it is one too many, or the last step of the run.
        """
        settings, step = self.settings, metrics.step
        if dist.get_rank() == 0:
            log.warning(
                "step %d: loss %s, gradient norm %s: not finite, the weights stay as they are "
                "(%d in a row, --max-nonfinite-steps %d)",
                *(step, metrics.loss, metrics.grad_norm, count, settings.max_nonfinite_steps),
            )
        last = step == settings.steps
        if stopping or last or count == settings.max_nonfinite_steps:
            self.checkpoints.discard()
        if last or count == settings.max_nonfinite_steps:
            raise UserError(
                f"step {step}: loss or gradient was not finite in {count} steps in a row; the "
                f"last good state is {self.checkpoints.newest}: lower the learning rate, or look "
                f"at the samples of step {step - count + 1}"
            )

    def _sync(self, items: list[MicroBatch]) -> StepSync:
        """Agree with the other ranks on the step, and advance the checkpoint being written."""
        self.phases.enter_phase("sync", samples=tuple(name for item in items for name in item.ids))
        sync = sync_step(
            items,
            self.settings.kinds,
            self.settings.losses,
            stop=self.stop.asked,
            save_status=self.checkpoints.status,
            device=device(),
        )
        self.checkpoints.advance(sync.save_status)
        return sync

    def _train_step(self, items: list[MicroBatch], sync: StepSync) -> bool:
        """Run one step; its losses are those of its last update.

        Returns:
            Whether all updates were applied; DeepSpeed skips those that are not finite.
        """
        applied = True
        for number in range(1, self.settings.updates + 1):
            self._update(items, sync, last=number == self.settings.updates)
            applied &= self.engine.was_step_applied()
        return applied

    def _update(self, items: list[MicroBatch], sync: StepSync, *, last: bool) -> None:
        """Run one optimizer update.

        DeepSpeed averages gradients over ranks. Multiplying by the number of ranks turns that into
        a sum, and dividing each loss by its count in the *global* batch makes the gradient
        independent of how the batch is split. The number of micro-steps varies from step to step.
        """
        terms = self.settings.losses
        scales = {
            term.name: term.weight * dist.get_world_size() / max(1, sync.counts[term.name])
            for term in terms
        }
        clear_gradients(self.engine)
        micro_steps = zip(items, sync.used, strict=True)
        for number, (item, used) in enumerate(micro_steps, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(items))
            self.phases.enter_phase("forward", samples=item.ids)
            losses = compute_losses(terms, self.engine(item.batch.to(device()), used))
            scaled = [losses[name].total * scale for name, scale in scales.items()]
            self.phases.enter_phase("backward", samples=item.ids)
            loss = _with_gradient_of_nan(torch.stack(scaled).sum())
            self.engine.backward(loss, scale_wrt_gas=False)
            self.phases.enter_phase("step", samples=item.ids)
            self.engine.step()
            if last:
                self.accumulator.add(item, losses)

    def _metrics(
        self,
        state: TrainerState,
        sync: StepSync,
        losses: Mapping[str, float],
        seconds: float,
        data_wait: float,
    ) -> StepMetrics:
        return StepMetrics(
            step=state.step,
            samples=state.samples,
            tokens=state.tokens,
            skipped_steps=state.skipped_steps,
            loss=sum(term.weight * losses[term.name] for term in self.settings.losses),
            losses=losses,
            lr=max(self.engine.get_lr()),
            lr_by_group=learning_rates(self.engine),
            grad_norm=float(self.engine.get_global_grad_norm() or 0.0),
            step_seconds=seconds,
            tokens_per_second=sync.tokens / seconds,
            padding_share=1 - sync.tokens / sync.positions,
            data_wait_share=data_wait / seconds,
            work=self.accumulator.metrics(seconds),
            phase_seconds=self.phases.take_seconds(),
        )

    def _save_if_due(
        self, state: TrainerState, validation: ValidationMetrics | None, *, stopping: bool
    ) -> bool:
        """Save where a checkpoint is due, or is the best; wait for it if no step follows."""
        self.checkpoints.confirm()
        result = validation.to_json() if validation is not None else None
        best = result is not None and self.checkpoints.is_best(result)
        last = stopping or state.step == self.settings.steps
        if not last and not best and state.step % self.settings.save_every:
            return False
        self.phases.enter_phase("save")
        self.checkpoints.save(self.engine, state, result)
        if last:
            self.checkpoints.finish()
        return True

    def _save_and_raise(self, items: list[MicroBatch], state: TrainerState, saved: int) -> None:
        """Save what was trained, and raise UserError for the shard that cannot be read."""
        self.phases.enter_phase("save")
        if state.step > saved:
            self.checkpoints.save(self.engine, state)
        self.checkpoints.finish()
        own = next(
            (item.unreadable_shard for item in items if item.unreadable_shard is not None), None
        )
        reasons: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, own)
        first = next(reason for reason in reasons if reason is not None)
        raise UserError(f"{first}; then the same command resumes after step {state.step}")

    def _progress(self, state: TrainerState) -> ProgressLine:
        """Return rank 0's progress line; the other ranks show nothing."""
        settings = self.settings
        console = Console(stderr=True, quiet=dist.get_rank() != 0)
        return ProgressLine(
            settings.name,
            first=state.step,
            total=settings.steps,
            every=settings.log_every,
            console=console,
        )


def _means(totals: Mapping[str, tuple[float, float]], sync: StepSync) -> dict[str, float]:
    """Return each loss's mean, given sums and counts over the global batch."""
    means = {}
    for name, (total, count) in totals.items():
        if count != sync.counts[name]:
            raise RuntimeError(
                f"loss {name}: {count:.0f} summands, but its count was {sync.counts[name]}"
            )
        means[name] = total / max(1.0, count)
    return means


def _with_gradient_of_nan(loss: Tensor) -> Tensor:
    """Return a loss; if it is not finite, with a gradient that is not, so that no rank applies it.

    DeepSpeed skips the step on all ranks if the norm of their gradients is not finite. This costs
    no synchronization with the device.
    """
    finite = torch.isfinite(loss.detach())
    return loss * torch.where(finite, 1.0, torch.nan).to(loss.dtype)


def _advance(state: TrainerState, sync: StepSync, *, skipped: bool) -> TrainerState:
    """Return the state after one more step."""
    return TrainerState(
        step=state.step + 1,
        samples=state.samples + sync.samples,
        bad=state.bad + sync.bad,
        tokens=state.tokens + sync.tokens,
        skipped_steps=state.skipped_steps + skipped,
    )


def _gather(items: list[MicroBatch], name: Literal["bad", "cut"]) -> list[dict[str, object]]:
    """Return the samples under that name of the micro-batches of all ranks."""
    own = [vars(one) for item in items for one in getattr(item, name)]
    gathered: list[list[dict[str, object]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, own)
    return [one for of_rank in gathered for one in of_rank]
