"""Locks with an owner: a file names the process that holds it, on any file system.

`flock` is missing on some cluster file systems, and does not say who holds a lock. So a lock is a
file that is created atomically with its owner's host, process and start time, is touched as long
as the owner lives, and is removed by it. The lock of an owner that has ended is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from etl.cli import UserError
from etl.storage.processes import find_process

BEAT_S = 20.0
"""How often the owner touches its lock."""
SILENT_S = 300.0
"""Without a touch for so long, an owner on another machine has ended."""
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a lock.

    Args:
        host: name of its machine.
        machine: identity of the machine's start and of the process's id namespace.
        pid, started: of the process, see `etl.storage.processes`.
        since: seconds since 1970.
        job, restarts: of Slurm, if it runs in a job; a requeued job keeps its number.
    """

    host: str
    machine: str
    pid: int
    started: int
    since: float
    job: str | None = None
    restarts: int = 0

    @classmethod
    def current(cls) -> Owner:
        """Return this process."""
        process = find_process(os.getpid())
        assert process is not None
        return cls(
            host=socket.gethostname(),
            machine=_machine(),
            pid=process.pid,
            started=process.started,
            since=time.time(),
            job=os.environ.get("SLURM_JOB_ID"),
            restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        )

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """Return the owner that a file names; None if it names none."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on host {self.host} since {since}"

    def has_ended(self, silent: float) -> bool:
        """Return whether the owner has ended.

        Args:
            silent: seconds since it last touched the lock.
        """
        if self.machine == _machine():
            process = find_process(self.pid)
            return process is None or process.started != self.started
        own = Owner.current()
        if self.job is not None and self.job == own.job and self.restarts < own.restarts:
            return True  # Slurm requeues a job after all of its processes have ended
        return silent > SILENT_S


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


@contextlib.contextmanager
def owner_lock(path: Path, *, name: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock; its folder is created if it does not exist.

    Args:
        path: of the lock.
        name: what the lock protects, for errors.
        wait: whether to wait while another process holds it.

    Raises:
        UserError: another process holds it, and `wait` is false; or it cannot be written.
    """
    own = Owner.current()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not _create(path, own):
            _wait_or_raise(path, own, name=name, wait=wait)
    except OSError as error:
        raise UserError(f"{name}: cannot be written ({error.strerror})") from None
    released = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, released), name="lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        released.set()
        with contextlib.suppress(FileNotFoundError):
            if Owner.read(path) == own:
                path.unlink()


def _wait_or_raise(path: Path, own: Owner, *, name: str, wait: bool) -> None:
    """Return once it is worth trying again."""
    holder = _take_over(path)
    if holder is None:
        return
    if not wait:
        where = "" if holder.machine == own.machine else f"; if it has ended, remove {path}"
        raise UserError(f"{name}: in use by {holder}{where}")
    time.sleep(_POLL_S)


def _beat(path: Path, released: threading.Event) -> None:
    while not released.wait(BEAT_S):
        with contextlib.suppress(OSError):  # removed, or a file system that does not respond
            os.utime(path)


def _create(path: Path, owner: Owner) -> bool:
    """Create a lock together with its content; return whether there was none."""
    content = json.dumps(asdict(owner)).encode()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        try:
            path.hardlink_to(partial)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with path.open("xb") as stream:
                    stream.write(content)
            except FileExistsError:
                return False
        return True
    finally:
        partial.unlink(missing_ok=True)


def _take_over(path: Path) -> Owner | None:
    """Remove the lock of an owner that has ended; return the owner of any other lock."""
    try:
        owner = Owner.read(path) or Owner(
            host="unknown", machine="", pid=0, started=0, since=path.stat().st_mtime
        )
        if not owner.has_ended(_silent(path)):
            return owner
        stale = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        path.rename(stale)
    except FileNotFoundError:
        return None
    # Another process may have taken the lock over in between: then this is its new one.
    taken = Owner.read(stale)
    if taken is not None and taken != owner:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(stale)
    stale.unlink()
    return None


def _silent(path: Path) -> float:
    """Return the seconds since a file was touched, by the clock of its file system."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
