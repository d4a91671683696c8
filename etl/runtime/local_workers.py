"""Workers that are processes on this machine: they start within milliseconds, and need no cluster.

They are forked from a server process (`multiprocessing`'s) that imports in the background what a
download needs; a fork of the job itself would inherit its threads' locks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Sequence
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

from etl.runtime.worker_pool import Call, Functions, WorkerDiedError

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = "etl.runtime.job"
"""All that jobs import: `multiprocessing` runs a job's script in each worker, up to its `main`."""


_ENDED_BEFORE_THE_JOB = "500"
"""Of /proc/self/oom_score_adj: where memory runs out, a worker ends, and its unit is done again."""


def preload() -> None:
    """Start the server that forks the workers, and its imports; returns at once."""
    _CONTEXT.set_forkserver_preload([_PRELOADED])
    forkserver.ensure_running()


class LocalWorker:
    """A process and our end of the pipe to it; also the ticket of its one call."""

    def __init__(self, log: Path | None, gpu: str | None) -> None:
        self.gpu = gpu
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, log, gpu), daemon=True)
        self.process.start()
        theirs.close()  # so that ours ends with the process


class LocalWorkers:
    """The processes that this machine's CPUs and GPUs hold.

    Args:
        log: the file to which they append their output; None for this process's stderr.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._log = log
        self.cpus = len(os.sched_getaffinity(0))
        self._free_gpus = _visible_gpus()
        self.gpus = len(self._free_gpus)
        preload()

    def start(self, *, cpus: float, gpus: float) -> LocalWorker:
        """See `Workers`; the size of a pool is chosen by the CPUs, so they need no account."""
        del cpus
        return LocalWorker(self._log, self._free_gpus.pop(0) if gpus else None)

    def submit(self, worker: LocalWorker, call: Call) -> LocalWorker:
        """See `Workers`."""
        with contextlib.suppress(OSError):  # it has died: `result` says how
            worker.pipe.send(call)
        return worker

    def wait(self, tickets: Sequence[LocalWorker], timeout: float | None) -> LocalWorker | None:
        """See `Workers`."""
        by_pipe = {worker.pipe: worker for worker in tickets}
        ready = connection.wait(list(by_pipe), timeout)
        return by_pipe[ready[0]] if ready else None  # type: ignore[index]

    def result(self, ticket: LocalWorker) -> Any:  # noqa: ANN401
        """See `Workers`."""
        try:
            result, error = ticket.pipe.recv()
        except (EOFError, OSError):
            ticket.process.join()
            raise WorkerDiedError(self._how(ticket)) from None
        if error is not None:
            raise error
        return result

    def kill(self, worker: LocalWorker) -> None:
        """See `Workers`."""
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        if worker.gpu is not None:
            self._free_gpus.append(worker.gpu)

    def _how(self, worker: LocalWorker) -> str:
        code = worker.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}, its output is in {self._log}" if self._log else how


def _visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not Path("/dev/nvidiactl").exists():
        return []  # importing torch takes seconds
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch  # noqa: PLC0415

    return [str(number) for number in range(torch.cuda.device_count())]


def _serve(pipe: connection.Connection, log: Path | None, gpu: str | None) -> None:
    """Make the calls that come through the pipe, until it or the job ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the job's to handle
    threading.Thread(target=_end_with_the_job, daemon=True).start()
    with contextlib.suppress(OSError):  # what `ps` and `top` show
        Path("/proc/self/comm").write_text("mmloom-worker")
        Path("/proc/self/oom_score_adj").write_text(_ENDED_BEFORE_THE_JOB)
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu or ""
    if log is not None:
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.enable()
    functions = Functions()
    while True:
        try:
            call = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send((functions.call(call), None))
        except Exception as error:  # the job raises it
            pipe.send((None, _portable(error)))


def _end_with_the_job() -> None:
    """A job that is killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, or in words if it cannot be pickled."""
    text = "".join(traceback.format_exception(error))
    error.add_note(text)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's own pickling may raise anything
        return RuntimeError(text)
    return error
