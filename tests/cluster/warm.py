"""Warm ranks: real processes that need not import PyTorch, DeepSpeed and transformers any more.

A server imports everything that training needs and then only forks. Each fork gets arguments, an
environment, a working directory and files for its output of its own, and from there on runs a
module as `python -m` does and exits as the interpreter does. The server itself never trains,
never draws a random number and has one thread, so a fork starts where a fresh process would be
after its imports. `test_training` compares losses of warm ranks bit by bit with those of cold ones.

    python -m tests.cluster.warm FD     the server; requests come over the socket FD
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

PRELOADED = (
    "pipeline.cli",
    "pipeline.train.train",
    # What training imports late: adapters, token counts, DeepSpeed's engine.
    "peft",
    "pandas",
    "pyarrow.compute",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    # What the tests' own ranks import besides.
    "tests.worlds",
)

LIBRARIES = {
    # No library is to start a thread while it is imported.
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # Threads that wait are not to keep busy those cores on which other processes work.
    "OMP_WAIT_POLICY": "passive",
}
"""Environment of the servers; libraries read it as they are loaded."""

SERVERS = 2
"""Neighbouring ranks come from different servers, since real ranks hash strings differently."""

_MESSAGE_BYTES = 1 << 20


class WarmProcess:
    """A fork of a server: the part of `subprocess.Popen` that the tests use.

    Args:
        module: what runs, as with `python -m`.
        words: its arguments.
        env: its whole environment.
        server: which of the servers forks it.
    """

    def __init__(
        self, module: str, words: Sequence[str], env: Mapping[str, str], *, server: int = 0
    ) -> None:
        self._name = f"{module} {' '.join(words)}"
        self._output = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - read later
        self._status, forks_end = os.pipe()
        request = {"module": module, "words": list(words), "env": dict(env)}
        files = [*(file.fileno() for file in self._output), forks_end]
        _servers()[server % SERVERS].send(request, files)
        os.close(forks_end)
        self.returncode: int | None = None
        self.pid = self._next_number(None)

    def _next_number(self, timeout: float | None) -> int:
        """Wait for what the server says next: the process's id, at its end the exit code."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            if not selector.select(timeout):
                raise subprocess.TimeoutExpired(self._name, timeout or 0)
        line = os.read(self._status, 16)  # written at once, with blanks up to this length
        if not line:
            raise RuntimeError(f"the server of warm ranks has ended, and with it {self._name}")
        return int(line)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._next_number(timeout)
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return all of stdout and stderr."""
        self.wait(timeout)
        texts = []
        for file in self._output:
            file.seek(0)
            texts.append(file.read().decode())
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Server:
    """The test's end of a server; it ends with this process, since their socket closes."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BYTES)
        number = str(theirs.fileno())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.warm", number],
            env={**os.environ, "DS_ACCELERATOR": "cpu", **LIBRARIES},
            stdin=subprocess.DEVNULL,
            cwd=REPOSITORY,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def send(self, request: Mapping[str, object], files: Sequence[int]) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
        self._socket.sendmsg([json.dumps(request).encode()], [rights])

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@functools.cache
def _servers() -> list[_Server]:
    servers = [_Server() for _ in range(SERVERS)]
    for server in servers:
        atexit.register(server.close)
    return servers


class _Forks:
    """The server's loop: one child for each request, and its exit code to whoever asked."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)
        self._children: dict[int, tuple[int, int]] = {}
        """By a descriptor that tells the child's end: its id, and where its exit code goes."""

    def serve(self) -> dict[str, object] | None:
        """Fork for every request: return it in the child, and None in the server at the end."""
        while True:
            for key, _ in self._selector.select():
                if key.fd != self._requests.fileno():
                    self._reap(key.fd)
                    continue
                message, files, *_ = socket.recv_fds(self._requests, _MESSAGE_BYTES, 3)
                if not message:
                    return self._end()
                if self._fork(*files):
                    return dict(json.loads(message))

    def _fork(self, stdout: int, stderr: int, status: int) -> bool:
        """Return whether this is the child."""
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads != 1:
            raise RuntimeError(f"{threads} threads: a fork would copy one of them")
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            self._close(stdout, stderr, status)
            return True
        os.close(stdout)
        os.close(stderr)
        os.write(status, b"%-16d" % child)
        watch = os.pidfd_open(child)
        self._children[watch] = child, status
        self._selector.register(watch, selectors.EVENT_READ)
        return False

    def _reap(self, watch: int) -> None:
        child, status = self._children.pop(watch)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # the test has given it up
            os.write(status, b"%-16d" % code)
        self._selector.unregister(watch)
        os.close(watch)
        os.close(status)

    def _close(self, *more: int) -> None:
        """Close all that is the server's, in a child."""
        for watch, (_, status) in self._children.items():
            os.close(watch)
            os.close(status)
        for file in more:
            os.close(file)
        self._selector.close()
        self._requests.close()

    def _end(self) -> None:
        for child, _ in self._children.values():
            os.kill(child, signal.SIGKILL)


def main(socket_fd: int) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or a child's first collection would copy everything that was imported
    request = _Forks(socket.socket(fileno=socket_fd)).serve()
    if request is not None:
        _become(**request)


def _become(module: str, words: list[str], env: dict[str, str]) -> None:
    """Do what `python -m` does after the imports; the end of this process is the interpreter's."""
    os.environ.clear()
    os.environ.update(env)
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
