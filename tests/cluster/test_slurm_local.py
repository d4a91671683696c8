"""`slurm/local.sh` as a user meets it: up, a job, down; and what it says where it cannot run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm_cluster import LOCAL, await_that, require_slurm

pytestmark = pytest.mark.cluster


# A process that is killed leaves nobody who reads what the script prints.
STARTER = """
import signal, subprocess, sys
script, folder = sys.argv[1:]
command = ["setpriv", "--pdeathsig", "TERM", script, "up", "--foreground", "--folder", folder]
up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
while "local.sh down" not in up.stdout.readline():
    pass
print("up", flush=True)
signal.pause()
"""


def local(*words: str, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [str(LOCAL), *words, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def slurm(folder: Path, *command: str) -> str:
    """Run one of Slurm's commands as `up` says."""
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    done = subprocess.run(
        command, env=env, cwd=folder.parent, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def daemons(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("*.pid")]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for a cluster, which is taken down if the test does not."""
    require_slurm()
    folder = tmp_path_factory.mktemp("local") / "slurm"
    yield folder
    if folder.exists():
        local("down", folder=folder)


def test_up_a_job_and_down(folder: Path) -> None:
    printed = local("up", folder=folder).stdout
    assert f"export SLURM_CONF={folder}/slurm.conf" in printed
    assert f"sbatch {LOCAL.parent}/pt.sh" in printed
    assert slurm(folder, "sinfo", "--noheader", "--Node", "--format=%N %T").splitlines() == [
        f"{node} idle"
        for node in ("node1", "node1", "node2", "node2")  # of two partitions each
    ]
    assert slurm(folder, "srun", "--nodes=2", "printenv", "SLURM_NODEID").split() in (
        ["0", "1"],
        ["1", "0"],
    )
    pids = daemons(folder)
    assert len(pids) == 4  # munged, slurmctld and a slurmd for each node

    again = local("up", folder=folder).stdout
    assert again == printed.replace("running in", "running already in")
    assert daemons(folder) == pids

    # A job that is still running ends with its cluster.
    slurm(folder, "sbatch", "--nodes=2", "--wrap=touch started; srun sleep 1000")
    await_that("the job", (folder.parent / "started").exists)
    local("down", folder=folder)
    assert not folder.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]  # else it has ended
    down = local("down", folder=folder, check=False)
    assert (down.returncode, down.stderr) == (2, f"error: no Slurm in {folder}\n")


def test_what_a_crash_has_left_is_cleared_away(folder: Path) -> None:
    local("up", "--nodes", "1", folder=folder)
    pids = daemons(folder)
    for pid in pids:
        os.kill(pid, 9)
    await_that("their end", lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))
    assert (
        ": node1, CPUs of each: 2\n"
        in local("up", "--nodes", "1", "--cpus", "2", folder=folder).stdout
    )
    assert slurm(folder, "srun", "--nodes=1", "echo", "well") == "well"


def test_it_ends_with_whoever_started_it(folder: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(LOCAL), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout.readline() == "up\n"
    pids = daemons(folder)
    assert len(pids) == 4
    slurm(folder, "sbatch", "--nodes=2", "--wrap=touch started; srun sleep 1000")
    await_that("the job", (folder.parent / "started").exists)
    starter.kill()
    starter.communicate()
    await_that("its end", lambda: not folder.exists())
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]


def test_another_s_folder_is_left_alone(tmp_path: Path) -> None:
    require_slurm()
    (tmp_path / "mine").touch()
    for command in ("up", "down"):
        done = local(command, folder=tmp_path, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: --folder {tmp_path}: ")
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "want up or down"),
        (("sideways",), "want up or down"),
        (("up", "--node", "3"), "--node: no such option"),
        (("up", "--nodes", "0"), "--nodes 0: want a number from 1"),
        (("up", "--nodes"), "--nodes: a value is missing"),
        (("up", "--folder", "/" + "long/" * 20), "want a path of at most 80 characters"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], complaint: str) -> None:
    if "--folder" in words:
        require_slurm()
    done = subprocess.run([str(LOCAL), *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_where_there_is_no_slurm_it_says_what_to_install(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("that it needs root is said first")
    for name in ("bash", "nproc", "realpath"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    done = subprocess.run(
        ["/bin/bash", str(LOCAL), "up"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: munged slurmctld slurmd sbatch srun scontrol not found; install them:"
        " apt-get install slurm-wlm munge\n"
    )


def test_who_is_not_root_is_told(tmp_path: Path) -> None:
    command = ["bash", "-s", "up"]  # nobody may not be allowed to read the repository
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    done = subprocess.run(
        command, input=LOCAL.read_text(), cwd="/", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: a Slurm on this host is started by root: sudo slurm/local.sh up\n",
    )
