"""The watchdog: a stalled step is reported with rank, module and samples, and the run ends.

RUN/ranks/rank-N.json           what each rank was doing a moment ago, while the run is on
RUN/stalled-rank-N.json         what a rank was doing when it stalled, and which ranks were behind
RUN/stalled-rank-N.txt          the stack of each of its threads at that time

A rank that waits in a collective cannot report anything itself, so a thread reports for it. The
thread reads the state of the other ranks from files: a store or another collective would need the
very rank that does not respond.
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
from pipeline.run_folder.starts import record_end

log = logging.getLogger(__name__)

STALLED = 200
"""Exit code of a stalled rank: above that of any signal, since `srun` returns the highest."""

GIVEN_UP = 1
"""Exit code of a rank that has stalled in the same step too often; not worth another attempt."""

_MAX_ATTEMPTS = 3
_MAX_INTERVAL_S = 30.0


@dataclass(frozen=True, kw_only=True)
class RankState:
    """What a rank is doing.

    Args:
        step: of the run, counted from 1; 0 before the first.
        phase: `data`, `sync`, `forward`, `backward`, `step`, `metrics`,
            `validation` or `save`.
        module: the module entered last in this phase.
        samples: ids of the samples being processed.
        phase_count: phases entered so far. All ranks of a run enter the same phases, so a rank
            with a lower count is behind.
    """

    step: int = 0
    phase: str = "start"
    module: str = ""
    samples: tuple[str, ...] = ()
    phase_count: int = 0

    def __str__(self) -> str:
        text = f"step {self.step}: {self.phase}"
        if self.module:
            text += f" in {self.module}"
        if self.samples:
            more = len(self.samples) - 8
            text += f", samples {', '.join(self.samples[:8])}" + f" and {more} more" * (more > 0)
        return text


class PhaseTracker:
    """Tracks the phase and the module that a rank is in; an update takes about a microsecond.

    Args:
        decoding: the samples that the rank's data workers are decoding.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self, decoding: WorkerStatus | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.decoding = decoding or WorkerStatus()
        self.clock = clock
        self.entered = (RankState(), clock())
        """The state and the time at which it was entered; one object, for the watchdog's thread."""
        self._seconds: dict[str, float] = {}
        self._counted_until = self.entered[1]

    @property
    def state(self) -> RankState:
        """What the rank is doing; in the phase `data`, with the samples being decoded."""
        state, _ = self.entered
        return replace(state, samples=self.decoding.read()) if state.phase == "data" else state

    def enter_phase(
        self, phase: str, *, step: int | None = None, samples: tuple[str, ...] = ()
    ) -> None:
        """Record that a phase begins; without `step` it belongs to the current step."""
        last, _ = self.entered
        self._add_seconds()
        state = RankState(
            step=last.step if step is None else step,
            phase=phase,
            samples=samples,
            phase_count=last.phase_count + 1,
        )
        self.entered = (state, self.clock())

    def take_seconds(self) -> dict[str, float]:
        """Return the seconds spent in each phase since the last call."""
        self._add_seconds()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _add_seconds(self) -> None:
        """Add the time since the last call to the current phase."""
        phase, now = self.entered[0].phase, self.clock()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._counted_until
        self._counted_until = now

    def enter_module(self, module: str) -> None:
        """Record that the forward or backward pass of a module begins."""
        last, _ = self.entered
        self.entered = (replace(last, module=module), self.clock())

    def register_hooks(self, model: nn.Module) -> None:
        """Record every module of `model` as it begins; the modules inside of layers are left out.

        Call it after DeepSpeed has registered its own hooks: a rank that hangs while the weights of
        a module are gathered is then reported in that module.
        """
        for name, module in _modules("", model):
            module.register_forward_pre_hook(partial(self._before_forward, name), prepend=True)
            module.register_forward_hook(partial(self._after_forward, name))

    def _before_forward(self, name: str, module: nn.Module, args: object) -> None:
        self.enter_module(name)

    def _after_forward(self, name: str, module: nn.Module, args: object, output: object) -> None:
        """Record the module again when the gradient of its output arrives in the backward pass.

        Not by torch's module backward hooks: they wrap the module's output in an autograd node that
        forbids later in-place operations.
        """
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._on_gradient, name))

    def _on_gradient(self, name: str, gradient: Tensor) -> None:
        self.enter_module(name)


def _modules(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules below a module by name, except those inside a layer of a `ModuleList`."""
    for child_name, child in module.named_children():
        full_name = f"{name}.{child_name}" if name else child_name
        yield full_name, child
        if not isinstance(module, nn.ModuleList):
            yield from _modules(full_name, child)


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
class PeerState:
    """The content of another rank's state file, and the time since which it has not changed."""

    content: Mapping[str, Any]
    since: float


class Watchdog:
    """Watches one rank: writes its state for the others, reports a stall and ends the process.

    A context manager around the step loop. The first `tick` after `seconds` without progress
    reports; the process ends two ticks later, so that every rank has the time to report. If the
    thread itself hangs (something holds the interpreter's lock, or the file system does not
    respond), `faulthandler`, which needs neither, dumps the stacks to stderr and ends the process.

    Args:
        tracker: of the rank.
        run: the run folder.
        rank, world: this rank, and the number of ranks.
        seconds: without progress, after which a rank is stalled.
        end: ends the process with an exit code.
    """

    def __init__(
        self,
        tracker: PhaseTracker,
        run: Path,
        *,
        rank: int,
        world: int,
        seconds: float,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._tracker = tracker
        self._run = run
        self._rank = rank
        self._world = world
        self._seconds = seconds
        self._end = end
        self.interval = min(_MAX_INTERVAL_S, seconds / 8)
        self._ticks = 0
        self._peers: dict[int, PeerState] = {}
        self._reported: tuple[RankState, float] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._state_file(self._rank).unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._stopped.wait(self.interval):
            faulthandler.dump_traceback_later(2 * self._seconds, exit=True, file=2)
            try:
                self.tick()
            except OSError as error:
                # A full disk must not end the watchdog; its report also goes to stderr.
                log.warning("watchdog: %s", error)

    def tick(self) -> None:
        """Write the rank's state; if it is stalled, report it, and two ticks later end it."""
        now = self._tracker.clock()
        entered = self._tracker.entered
        idle = now - entered[1]
        if idle <= self._seconds:
            self._ticks += 1
            self._write_state()
            if idle > self._seconds / 2:
                self._read_peers(now)
        elif self._reported is not entered:
            self._reported = entered
            self._report(idle, now)
        elif idle > self._seconds + 2 * self.interval:
            self._end_process()

    def _state_file(self, rank: int) -> Path:
        return self._run / "ranks" / f"rank-{rank}.json"

    def _write_state(self) -> None:
        """Write this rank's state for the others; without fsync, so a crash may lose it."""
        path = self._state_file(self._rank)
        path.parent.mkdir(exist_ok=True)
        state = asdict(self._tracker.state)
        content = {"tick": self._ticks, "host": socket.gethostname(), **state}
        partial_file = path.with_suffix(".partial")
        partial_file.write_text(json.dumps(content))
        partial_file.replace(path)

    def _read_peers(self, now: float) -> None:
        """Read the states of the other ranks."""
        for rank in set(range(self._world)) - {self._rank}:
            content: Mapping[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):
                content = json.loads(self._state_file(rank).read_bytes())
            peer = self._peers.get(rank)
            if peer is None or peer.content.get("tick") != content.get("tick"):
                self._peers[rank] = PeerState(content=content, since=now)

    def _report(self, idle: float, now: float) -> None:
        state = self._tracker.state
        stalled = self._run / f"stalled-rank-{self._rank}.json"
        behind = self._behind(state, now)
        line = f"stalled: rank {self._rank} ({socket.gethostname()}), {idle:.0f} s in {state}; "
        line += "; ".join(behind) or "no rank is behind"
        # Not through Python's stderr: the stalled thread may hold its lock.
        os.write(2, f"{line}\n".encode())
        with stalled.with_suffix(".txt").open("w") as stacks:
            faulthandler.dump_traceback(stacks)
        self._read_peers(now)
        report = {
            **asdict(state),
            "rank": self._rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "seconds": idle,
            "behind": behind,
            "attempts": _attempts(stalled, state) + 1,
        }
        write_json(stalled, report)

    def _behind(self, state: RankState, now: float) -> list[str]:
        """Describe each other rank that is silent or behind, with its last known state."""
        descriptions = []
        for rank, peer in sorted(self._peers.items()):
            seen = "tick" in peer.content
            silent = now - peer.since > self._seconds / 4
            if not silent and not (seen and _is_behind(peer, state)):
                continue
            text = f"rank {rank}"
            if seen:
                names = ("step", "phase", "module", "phase_count")
                last = RankState(
                    samples=tuple(peer.content["samples"]),
                    **{name: peer.content[name] for name in names},
                )
                text += f" ({peer.content['host']})"
            text += f" silent for {now - peer.since:.0f} s or more" if silent else " is behind"
            descriptions.append(f"{text}, last in {last}" if seen else f"{text}, never seen")
        return descriptions

    def _end_process(self) -> None:
        stalled = self._run / f"stalled-rank-{self._rank}.json"
        code = STALLED
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads(stalled.read_bytes())["attempts"] >= _MAX_ATTEMPTS:
                code = GIVEN_UP
                step = self._tracker.state.step
                os.write(2, f"stalled {_MAX_ATTEMPTS} times in step {step}: giving up\n".encode())
        for child in multiprocessing.active_children():
            child.kill()  # a data worker that hangs would outlive the rank
        if self._rank == 0:
            record_end(self._run, f"stalled: {stalled.name}")
        self._end(code)


def _is_behind(peer: PeerState, state: RankState) -> bool:
    """Return whether a rank is in an earlier phase, or in another module of the same one."""
    count: int = peer.content["phase_count"]
    if count == state.phase_count:
        return bool(peer.content["module"] != state.module)
    return count < state.phase_count


def _attempts(stalled: Path, state: RankState) -> int:
    """Return how often the rank has stalled in this step before."""
    if not stalled.is_file():
        return 0
    last = json.loads(stalled.read_bytes())
    return int(last.get("attempts", 0)) if last["step"] == state.step else 0
