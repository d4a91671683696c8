"""The watchdog: a step that stands still names rank, module and samples, and ends.

RUN/ranks/rank-N.json           where each rank was a moment ago, while the run is on
RUN/stalled-rank-N.json         where a rank stood still, and which ranks were behind
RUN/stalled-rank-N.txt          what each of its threads was doing then

A rank that waits in a collective cannot say anything, so a thread of its own speaks for it. It
finds out by files who is behind: a store or another collective would need the very rank that does
not answer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from etl.storage.atomic import write_json
from pipeline.data.worker_status import WorkerStatus

log = logging.getLogger(__name__)

STALLED = 200
"""Exit code of a stalled rank: above that of any signal, since `srun` returns the highest."""

GIVEN_UP = 1
"""Exit code of a rank that has stalled in the same step too often; not worth another try."""

_TRIES = 3
_LONGEST_TICK_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank is.

    Args:
        step: of the run, counted from 1; 0 before the first.
        phase: `data`, `agree`, `forward`, `backward`, `step`, `record` or `save`.
        module: the module that was entered last in this phase.
        samples: ids of the samples that are worked on.
        moves: phases entered so far; ranks of one run enter the same ones, so who has fewer is
            behind.
    """

    step: int = 0
    phase: str = "start"
    module: str = ""
    samples: tuple[str, ...] = ()
    moves: int = 0

    def __str__(self) -> str:
        parts = [f"step {self.step}: {self.phase}"]
        if self.module:
            parts[0] += f" in {self.module}"
        if self.samples:
            more = len(self.samples) - 8
            parts.append(
                f"samples {', '.join(self.samples[:8])}" + (f" and {more} more" * (more > 0))
            )
        return ", ".join(parts)


class Watch:
    """Keeps where the rank is; a note costs about a microsecond.

    Args:
        decoding: what the rank's data workers are at.
        clock: seconds that never go back.
    """

    def __init__(
        self, decoding: WorkerStatus | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.decoding = decoding or WorkerStatus()
        self.clock = clock
        self.progress = (Place(), clock())
        """The place, and when the rank came there; one object, since another thread reads it."""
        self._seconds: dict[str, float] = {}
        self._counted = self.progress[1]

    @property
    def place(self) -> Place:
        """Where the rank is, and what is being decoded if that is data."""
        place, _ = self.progress
        return replace(place, samples=self.decoding.read()) if place.phase == "data" else place

    def at(self, phase: str, *, step: int | None = None, samples: tuple[str, ...] = ()) -> None:
        """Note the phase that begins; without `step` it is another of the same step."""
        last, _ = self.progress
        self._count()
        place = Place(
            step=last.step if step is None else step,
            phase=phase,
            samples=samples,
            moves=last.moves + 1,
        )
        self.progress = (place, self.clock())

    def spent(self) -> dict[str, float]:
        """Return the seconds spent in each phase since this was last asked."""
        self._count()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _count(self) -> None:
        """Add the time since the last count to the phase that goes on."""
        phase, now = self.progress[0].phase, self.clock()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._counted
        self._counted = now

    def enter(self, module: str) -> None:
        """Note the module whose forward or backward pass begins."""
        last, _ = self.progress
        self.progress = (replace(last, module=module), self.clock())

    def follow(self, model: nn.Module) -> None:
        """Note every module of `model` as it begins, layers as a whole.

        Called after DeepSpeed has hooked the model: a rank that hangs while a module's weights are
        gathered is to have been in that module.
        """
        for name, module in _layers("", model):
            module.register_forward_pre_hook(partial(self._forward, name), prepend=True)
            module.register_forward_hook(partial(self._returned, name))

    def _forward(self, name: str, module: nn.Module, args: object) -> None:
        self.enter(name)

    def _returned(self, name: str, module: nn.Module, args: object, output: object) -> None:
        """Wait for the gradient of what a module returns: then its backward pass begins.

        Not torch's own backward hooks: they put a node around the module, which forbids changes
        in place behind it.
        """
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._backward, name))

    def _backward(self, name: str, gradient: Tensor) -> None:
        self.enter(name)


def _layers(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and what is in it, but nothing from inside a layer of a stack of layers."""
    for child_name, child in module.named_children():
        whole = f"{name}.{child_name}" if name else child_name
        yield whole, child
        if not isinstance(module, nn.ModuleList):
            yield from _layers(whole, child)


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a rank's file says, and since when it has said nothing new."""

    note: Mapping[str, Any]
    since: float


class Watchdog:
    """Looks after one rank: tells where it stands, and ends it when it stands still.

    Used as a context around the step loop. The first `tick` past `seconds` reports; the process
    ends two ticks later, so that every rank has the time to report. Should the thread itself hang
    (something holds the interpreter's lock, or the file system does not answer), `faulthandler`,
    which needs neither, dumps the stacks to stderr and ends the process.

    Args:
        watch: where the rank is.
        run: the run folder.
        rank, world: this rank, and how many there are.
        seconds: without progress, after which a rank has stalled.
        end: ends the process with an exit code.
    """

    def __init__(
        self,
        watch: Watch,
        run: Path,
        *,
        rank: int,
        world: int,
        seconds: float,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._watch = watch
        self._run = run
        self._rank = rank
        self._world = world
        self._seconds = seconds
        self._end = end
        self.every = min(_LONGEST_TICK_S, seconds / 8)
        self._ticks = 0
        self._heard: dict[int, Heard] = {}
        self._reported: tuple[Place, float] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._file(self._rank).unlink(missing_ok=True)

    def _look(self) -> None:
        while not self._ended.wait(self.every):
            faulthandler.dump_traceback_later(2 * self._seconds, exit=True, file=2)
            try:
                self.tick()
            except OSError as error:
                # A full disk must not end the watch; what it has to say goes to stderr, too.
                log.warning("watchdog: %s", error)

    def tick(self) -> None:
        """Look once: note where the rank is, and once it stands still, report and end it."""
        now = self._watch.clock()
        progress = self._watch.progress
        idle = now - progress[1]
        if idle <= self._seconds:
            self._ticks += 1
            self._note()
            if idle > self._seconds / 2:
                self._listen(now)
        elif self._reported is not progress:
            self._reported = progress
            self._report(idle, now)
        elif idle > self._seconds + 2 * self.every:
            self._end_process()

    def _file(self, rank: int) -> Path:
        return self._run / "ranks" / f"rank-{rank}.json"

    def _note(self) -> None:
        """Write where this rank is, for the others; without fsync, a crash may lose it."""
        path = self._file(self._rank)
        path.parent.mkdir(exist_ok=True)
        note = {"tick": self._ticks, "host": socket.gethostname(), **asdict(self._watch.place)}
        fresh = path.with_suffix(".partial")
        fresh.write_text(json.dumps(note))
        fresh.replace(path)

    def _listen(self, now: float) -> None:
        """Read where the others are."""
        for rank in set(range(self._world)) - {self._rank}:
            note: Mapping[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):
                note = json.loads(self._file(rank).read_bytes())
            if rank not in self._heard or self._heard[rank].note.get("tick") != note.get("tick"):
                self._heard[rank] = Heard(note=note, since=now)

    def _report(self, idle: float, now: float) -> None:
        place = self._watch.place
        stalled = self._run / f"stalled-rank-{self._rank}.json"
        behind = self._behind(place, now)
        line = f"stalled: rank {self._rank} ({socket.gethostname()}), {idle:.0f} s in {place}; "
        line += "; ".join(behind) or "no rank is behind"
        # Past Python's stderr: the thread that stands still may hold its lock.
        os.write(2, f"{line}\n".encode())
        with stalled.with_suffix(".txt").open("w") as stacks:
            faulthandler.dump_traceback(stacks)
        self._listen(now)
        report = {
            **asdict(place),
            "rank": self._rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "seconds": idle,
            "behind": behind,
            "times": self._times_before(stalled, place) + 1,
        }
        write_json(stalled, report)

    def _behind(self, place: Place, now: float) -> list[str]:
        """Say of each other rank that does not answer, or is not as far, where it was last."""
        said = []
        for rank, heard in sorted(self._heard.items()):
            known = "tick" in heard.note
            silent = now - heard.since > self._seconds / 4
            if not silent and not (known and self._elsewhere(heard, place)):
                continue
            words = f"rank {rank}"
            if known:
                names = ("step", "phase", "module", "moves")
                where = Place(
                    samples=tuple(heard.note["samples"]), **{n: heard.note[n] for n in names}
                )
                words += f" ({heard.note['host']})"
            words += f" silent for {now - heard.since:.0f} s or more" if silent else " is behind"
            said.append(f"{words}, last in {where}" if known else f"{words}, never heard of")
        return said

    def _elsewhere(self, heard: Heard, place: Place) -> bool:
        """Tell whether a rank is not as far, or as far and in another module."""
        moves = heard.note["moves"]
        return bool(
            moves < place.moves or (moves == place.moves and heard.note["module"] != place.module)
        )

    def _times_before(self, stalled: Path, place: Place) -> int:
        if not stalled.is_file():
            return 0
        last = json.loads(stalled.read_bytes())
        return int(last["times"]) if last["step"] == place.step else 0

    def _end_process(self) -> None:
        stalled = self._run / f"stalled-rank-{self._rank}.json"
        code = STALLED
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads(stalled.read_bytes())["times"] >= _TRIES:
                code = GIVEN_UP
                step = self._watch.place.step
                os.write(2, f"stalled {_TRIES} times in step {step}: given up\n".encode())
        for child in multiprocessing.active_children():
            child.kill()  # a data worker that hangs would outlive the rank
        self._end(code)
