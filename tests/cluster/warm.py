"""Warm ranks: real processes that need not import PyTorch, DeepSpeed and transformers any more.

A server imports everything that training needs and then only forks. Each fork gets arguments, an
environment, a working directory and files for its output of its own, and from there on runs a
module as `python -m` does and exits as the interpreter does. The server itself never trains,
never draws a random number and has one thread, so a fork starts where a fresh process would be
after its imports. `test_training` compares losses of warm ranks bit by bit with those of cold ones.

    python -m tests.cluster.warm FD PID     the server; requests come over the socket FD
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

OWNER = "WARM_RANKS_OWNER"
"""Variable with the id of the process whose servers these are: all processes of one test run share
them, and they end with it."""

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
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
        _server(server % SERVERS).sendmsg([json.dumps(request).encode()], [rights])
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

    def stderr_so_far(self) -> str:
        """What it has written to stderr; read without moving the offset, which it shares."""
        file = self._output[1].fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="ignore")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_started: list[subprocess.Popen[bytes]] = []


@functools.cache
def _server(number: int) -> socket.socket:
    """Return this process's connection to a server, which the first to ask for it starts."""
    owner = os.environ.get(OWNER, str(os.getpid()))
    folder = Path(tempfile.gettempdir(), f"warm-ranks-{owner}")
    folder.mkdir(exist_ok=True)
    address = folder / str(number)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            _start(address, owner)
    connection = _socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BYTES)
    connection.connect(str(address))
    return connection


def _start(address: Path, owner: str) -> None:
    with _socket() as listener:
        listener.bind(str(address))
        listener.listen()
        number = str(listener.fileno())
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.warm", number, owner],
            env={**os.environ, "DS_ACCELERATOR": "cpu", **LIBRARIES},
            stdin=subprocess.DEVNULL,
            cwd=REPOSITORY,
            pass_fds=[listener.fileno()],
        )
    _started.append(server)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@dataclass(frozen=True, kw_only=True)
class _Child:
    """A fork: its id, the connection that asked for it, and where its exit code goes."""

    pid: int
    client: socket.socket
    status: int


class _Forks:
    """The server's loop: one child for each request, and its exit code to the process that asked.

    It ends with the owner of the servers; the children of a process that ends are killed.
    """

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._address = Path(listener.getsockname())
        self._owner = os.pidfd_open(owner)
        self._selector.register(self._owner, selectors.EVENT_READ, None)
        self._children: dict[int, _Child] = {}
        """By a descriptor that tells the child's end."""

    def serve(self) -> dict[str, object] | None:
        """Fork for every request: return it in the child, and None in the server at the end."""
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._owner:
                    return self._end()
                if key.data is not None:
                    request = key.data(key.fileobj)
                    if request is not None:
                        return request

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        self._selector.register(client, selectors.EVENT_READ, self._answer)

    def _answer(self, client: socket.socket) -> dict[str, object] | None:
        """Fork for a request; return it in the child."""
        message, files, *_ = socket.recv_fds(client, _MESSAGE_BYTES, 3)
        if message:
            return dict(json.loads(message)) if self._fork(client, *files) else None
        self._kill([child for child in self._children.values() if child.client is client])
        self._selector.unregister(client)
        client.close()
        return None

    def _fork(self, client: socket.socket, stdout: int, stderr: int, status: int) -> bool:
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
        self._children[watch] = _Child(pid=child, client=client, status=status)
        self._selector.register(watch, selectors.EVENT_READ, self._reap)
        return False

    def _reap(self, watch: int) -> None:
        child = self._children.pop(watch)
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # the test has given it up
            os.write(child.status, b"%-16d" % code)
        self._selector.unregister(watch)
        os.close(watch)
        os.close(child.status)

    def _close(self, *more: int) -> None:
        """Close all that is the server's, in a child."""
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        for child in self._children.values():
            os.close(child.status)
        for file in more:
            os.close(file)
        self._selector.close()

    def _end(self) -> None:
        self._kill(list(self._children.values()))
        shutil.rmtree(self._address.parent, ignore_errors=True)

    @staticmethod
    def _kill(children: Sequence[_Child]) -> None:
        for child in children:
            os.kill(child.pid, signal.SIGKILL)


def main(socket_fd: int, owner: int) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or a child's first collection would copy everything that was imported
    request = _Forks(socket.socket(fileno=socket_fd), owner).serve()
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
    main(*map(int, sys.argv[1:]))
