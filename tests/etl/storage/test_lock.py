"""A lock is held by one living process, and taken over from one that has ended."""

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from etl.cli import UserError
from etl.storage import lock
from etl.storage.atomic import write_json
from etl.storage.lock import SILENT_S, Owner, owner_lock

HOLD = """
import sys
from pathlib import Path
from etl.storage.lock import owner_lock
with owner_lock(Path(sys.argv[1]), name="it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "lock"


def leave(path: Path, owner: Owner, *, silent: float = 0.0) -> None:
    """Leave a lock that its owner has not touched for so many seconds."""
    write_json(path, vars(owner))
    moment = path.stat().st_mtime - silent
    os.utime(path, (moment, moment))


def elsewhere(**changes: object) -> Owner:
    """Return an owner on another machine."""
    return replace(Owner.current(), host="node7", machine="another", pid=4711, **changes)  # type: ignore[arg-type]


def take(path: Path, *, wait: bool = False) -> None:
    with owner_lock(path, name="it", wait=wait):
        assert Owner.read(path) == replace(Owner.current(), since=Owner.read(path).since)  # type: ignore[union-attr]
    assert not path.exists()


def test_a_second_process_is_told_who_holds_it_and_a_killed_holder_is_replaced(path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        host = os.uname().nodename
        message = f"^it: in use by process {holder.pid} on host {host} since 20"
        with pytest.raises(UserError, match=message):
            take(path)
        holder.kill()
    take(path)
    assert [file.name for file in path.parent.iterdir()] == []


def test_another_process_with_the_same_id_is_not_the_owner(path: Path) -> None:
    own = Owner.current()
    leave(path, replace(own, started=own.started - 1))
    take(path)


def test_an_owner_on_another_machine_holds_it_until_it_is_silent(path: Path) -> None:
    leave(path, elsewhere(), silent=SILENT_S - 60)
    message = f"process 4711 on host node7 since .*; if it has ended, remove {path}"
    with pytest.raises(UserError, match=message):
        take(path)
    leave(path, elsewhere(), silent=SILENT_S + 60)
    take(path)


def test_a_job_that_slurm_has_requeued_replaces_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    leave(path, elsewhere(job="77", restarts=0))
    with pytest.raises(UserError, match="node7"):
        take(path)  # another step of the same job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    take(path)
    leave(path, elsewhere(job="76", restarts=0))
    with pytest.raises(UserError, match="node7"):
        take(path)


def test_a_lock_without_content_is_kept_until_it_is_silent(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with pytest.raises(UserError, match="process 0 on host unknown"):
        take(path)
    os.utime(path, (0, 0))
    take(path)


def test_the_owner_touches_its_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with owner_lock(path, name="it"):
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            pass


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_file_system_without_flock_or_links(
    links: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    take(path)
    with owner_lock(path, name="it"), pytest.raises(UserError, match="in use by process"):
        take(path)


def test_one_of_several_waits_for_the_other(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=-1, stdout=-1, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        holder.stdin.close()
        take(path, wait=True)


def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^it: cannot be written \(Not a directory\)$"):
        take(Path("/dev/null/folder/lock"))
