"""Calls of decoders that end with a reason whatever happens: a time limit, a process of their own.

    python -m etl.runtime.isolation     reads calls from stdin and writes their results to stdout

A worker checks media on its threads, under a `Deadline`. If it dies, its unit is done again with
`IsolatedCalls`: a process with a single thread, which has imported what decoders need, forks for
every medium, so one that crashes, hangs or exhausts the memory takes nothing with it.
(`multiprocessing` would run the script of a Ray worker in every child.)
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

DECODE_SECONDS = 300.0
"""How long the check of a medium may take."""

_ENDED_FIRST = "1000"
"""Of /proc/self/oom_score_adj: where memory runs out, a medium's process ends before others do."""


class CrashedError(Exception):
    """The process of a call died, or took too long; the message says how."""


class Deadline:
    """Ends this process, by SIGALRM, when a block takes too long.

    The signal's action is the kernel's, which also ends code that holds the interpreter's lock.

    Args:
        seconds: for each block; several threads may be in one.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._ends: dict[object, float] = {}  # in order

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Run a block."""
        block = object()
        with self._lock:
            self._ends[block] = time.monotonic() + self._seconds
            self._set_timer()
        try:
            yield
        finally:
            with self._lock:
                del self._ends[block]
                self._set_timer()

    def _set_timer(self) -> None:
        first = next(iter(self._ends.values()), None)
        left = 0.0 if first is None else max(0.001, first - time.monotonic())  # 0 stops it
        signal.setitimer(signal.ITIMER_REAL, left)


class IsolatedCalls:
    """Makes calls, each in a process of its own; closed by `with`.

    Args:
        seconds: how long each may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> IsolatedCalls:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.communicate()  # ends with its input
            self._process = None

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401 - any call
        """Return a function's result; all are pickled.

        Raises:
            CrashedError: its process died or took too long.
        """
        with self._lock:
            code, result = self._ask(function, args)
            if code == -signal.SIGKILL:  # perhaps for want of memory that others had taken
                code, result = self._ask(function, args)
        if code == -signal.SIGALRM:
            raise CrashedError(f"it took more than {self._seconds:g} s")
        if code < 0:
            raise CrashedError(signal.Signals(-code).name)
        if code:
            raise CrashedError(f"exit code {code}")
        return pickle.loads(result)

    def _ask(self, *call: Any) -> tuple[int, bytes]:  # noqa: ANN401 - any call
        if self._process is None:
            path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        pickle.dump((self._seconds, *call), stdin)
        stdin.flush()
        found: tuple[int, bytes] = pickle.load(stdout)
        return found


def serve() -> None:
    """Make the calls that stdin brings, each in a fork of this process, until it ends."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # where libraries print
    faulthandler.enable()
    _import_decoders()
    while True:
        try:
            call = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_call_in_fork(*call), results)
        results.flush()


def _import_decoders() -> None:
    """Import once what every fork would import by itself."""
    # Only the server of the forks needs them, and only so that they are loaded.
    import cv2  # noqa: F401, PLC0415
    import simplejpeg  # noqa: F401, PLC0415

    import etl.media.gather  # noqa: F401, PLC0415


def _call_in_fork(
    seconds: float, function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[int, bytes]:
    """The exit code of a fork that makes the call (minus a signal's number), and its result."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _make_call(writer, seconds, function, args)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        result = stream.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), result


def _make_call(
    writer: int, seconds: float, function: Callable[..., Any], args: tuple[Any, ...]
) -> NoReturn:
    code = 1
    try:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_ENDED_FIRST)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        with os.fdopen(writer, "wb") as stream:
            pickle.dump(function(*args), stream)
        code = 0
    except BaseException:  # the fork must not go on as its parent would
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
