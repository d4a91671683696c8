"""Continuous batching: requests join the running batch, and leave it, at any step of decoding.

One thread decodes for all models. Each step first lets finished and cancelled requests go and
encodes the prompts of waiting ones, in the order of their arrival and as far as the cache's budget
goes, then gives every running request its next token. A request's budget is reserved when it
joins, so that none that has begun runs out of memory.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from etl.cli import UserError
from model.batch_invariance import batch_invariant
from model.signal_decoding import Condition
from pipeline.serve.jobs import Done, Failed, Job
from pipeline.serve.lanes import Lane, Running, padded_positions
from pipeline.serve.models import ServedModel

log = logging.getLogger(__name__)

_PREFILLS = 4
"""Prompts that are encoded between two steps: more would let those who wait for a token wait."""


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What the engine takes at a time.

    Args:
        batch: requests that are decoded together.
        waiting: requests that wait for a place.
        positions: of the cache, over all slots, padding included; a request that needs more alone
            is refused.
        threads: of the CPU; with one, on the CPU, answers do not depend on the batch to the bit.
    """

    batch: int = 32
    waiting: int = 128
    positions: int = 65_536
    threads: int = 1


class QueueFullError(Exception):
    """So many requests wait already that another one is refused."""


class Engine:
    """Answers jobs; `close` it, or use it as a context manager.

    Args:
        models: by name.
        limits: of the engine.

    Attributes:
        counts: of events since the start: `tokens`, `prompt_tokens`, `steps`, `stop`, `length`,
            `cancelled`, `failed`.
    """

    def __init__(
        self, models: Mapping[str, ServedModel], limits: EngineLimits | None = None
    ) -> None:
        self.models, self.limits = models, limits or EngineLimits()
        self.counts: Counter[str] = Counter()
        self._lanes = {name: Lane(served) for name, served in models.items()}
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._media = ThreadPoolExecutor(1, "media", torch.set_num_threads, (self.limits.threads,))
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        """Return the engine."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Fail what is left, and wait for the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._media.shutdown()

    @property
    def running(self) -> int:
        """Number of requests that are being decoded."""
        return sum(len(lane.running) for lane in self._lanes.values())

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a place."""
        return len(self._waiting)

    @property
    def cached_positions(self) -> int:
        """Number of tokens in the cache."""
        rows = [row for lane in self._lanes.values() for row in tuple(lane.running)]
        return sum(len(row.job.example.ids) + len(row.ids) for row in rows)

    def check(self, job: Job) -> None:
        """Raise UserError for a job that can never be run."""
        needed = self._lanes[job.model].reserved(job)
        if needed > self.limits.positions:
            raise UserError(
                f"prompt and answer take up to {needed} tokens, of which this server holds "
                f"{self.limits.positions}; want a shorter prompt or a lower max_tokens"
            )

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all or none.

        Raises:
            QueueFullError: too many are waiting.
            UserError: one that can never be run.
        """
        for job in jobs:
            self.check(job)
        with self._changed:
            if self._closed or len(self._waiting) + len(jobs) > self.limits.waiting:
                raise QueueFullError
            self._waiting.extend(jobs)
            self._changed.notify()

    @torch.no_grad()
    def _run(self) -> None:
        torch.set_num_threads(self.limits.threads)
        with ExitStack() as stack:
            if self.limits.threads == 1:  # several divide the work by the size of the batch
                modules = {id(each.module): each.module for each in self.models.values()}
                for module in modules.values():
                    stack.enter_context(batch_invariant(module, packed=True))
            while self._wait():
                self._drop_cancelled()
                self._admit()
                for lane in self._lanes.values():
                    if lane.running:
                        self._step(lane)
        left = [running.job for lane in self._lanes.values() for running in lane.reset()]
        for job in (*left, *self._waiting):
            job.on_event(Failed(message="the server is stopping"))

    def _wait(self) -> bool:
        """Wait for something to do; returns whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self.running)
            return not self._closed

    def _drop_cancelled(self) -> None:
        with self._changed:
            kept = [job for job in self._waiting if not job.cancelled]
            self.counts["cancelled"] += len(self._waiting) - len(kept)
            self._waiting = deque(kept)
        for lane in self._lanes.values():
            for running in [each for each in lane.running if each.job.cancelled]:
                lane.remove(running)
                self.counts["cancelled"] += 1

    def _admit(self) -> None:
        """Encode the prompts of the first waiting jobs that fit."""
        for _ in range(_PREFILLS):
            with self._changed:
                if not self._waiting or not self._fits(self._waiting[0]):
                    return
                job = self._waiting.popleft()
            lane = self._lanes[job.model]
            try:
                lane.add(job)
            except Exception as error:
                for running in [each for each in lane.running if each.job is job]:
                    lane.remove(running)
                self._fail([job], error)
                continue
            self.counts["prompt_tokens"] += len(job.example.ids)
            self._finish(lane)

    def _fits(self, job: Job) -> bool:
        if self.running >= self.limits.batch:
            return False
        positions = padded_positions(self._lanes, self._lanes[job.model], job)
        return positions <= self.limits.positions or not self.running

    def _step(self, lane: Lane) -> None:
        try:
            lane.step()
        except Exception as error:
            self._fail([running.job for running in lane.reset()], error)
            return
        self.counts["steps"] += 1
        self._finish(lane)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """Report an error that is ours, or the device's, to those whom it hits; go on."""
        log.exception("%d requests have failed", len(jobs), exc_info=error)
        if isinstance(error, torch.OutOfMemoryError) and torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        self.counts["failed"] += len(jobs)
        for job in jobs:
            job.on_event(Failed(message=f"the model failed ({type(error).__name__})"))

    def _finish(self, lane: Lane) -> None:
        """Let the requests go whose answers are complete."""
        for running in [each for each in lane.running if each.reason]:
            self.counts[running.reason] += 1
            self.counts["tokens"] += len(running.ids)
            done, conditions = lane.done(running), lane.conditions(running)
            lane.remove(running)
            if conditions:
                self._media.submit(self._generate_media, lane, running, done, conditions)
            else:
                running.job.on_event(done)

    @torch.no_grad()
    def _generate_media(
        self, lane: Lane, running: Running, done: Done, conditions: Sequence[Condition]
    ) -> None:
        """Denoise the media of an answer, in a thread of its own: others go on meanwhile."""
        job, replier = running.job, lane.served.replier
        assert replier is not None
        if job.cancelled:
            return
        media = [("", number, condition) for number, condition in enumerate(conditions)]
        try:
            found = replier.generate_media(media, job.settings.generation)
        except Exception as error:
            self._fail([job], error)
            return
        job.on_event(replace(done, media=tuple(found["", n] for n in range(len(media)))))
