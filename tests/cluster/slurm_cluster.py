"""A real Slurm for the tests: that of `slurm/local.sh`, and two more nodes.

`node1` and `node2` are the default partition. `node3`, in the partition `gpu`, has two GPUs as far
as Slurm's bookkeeping goes, so that the scripts' GPU branch runs where there is no GPU. `node4`
takes the place of a node that is lost. Jobs in the partition `urgent` preempt those in `main` and,
after a time of grace, those in `graceful`.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.ray_cluster import free_ports

LOCAL = Path(__file__).parents[2] / "slurm" / "local.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

# Slurm wants a device file for each GPU; it never opens them.
GRES = "NodeName=node3 Name=gpu File=/dev/null\nNodeName=node3 Name=gpu File=/dev/zero\n"
EXTRA = """\
GresTypes=gpu
NodeName=node3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs=2 Gres=gpu:2
NodeName=node4 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
PartitionName=graceful Nodes=node[1-2] PriorityTier=1 GraceTime=60
PartitionName=gpu Nodes=node3
PartitionName=spare Nodes=node4
"""


def await_that(what: str, check: Callable[[], object], deadline: float = 60) -> None:
    """Poll `check` until it holds; fail after `deadline` seconds, naming `what`."""
    end = time.monotonic() + deadline
    while not check():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline:.0f} s")
        time.sleep(0.1)


def parent(pid: int) -> int:
    """The parent's id; 0 if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill(pid: int) -> None:
    """Kill a process that may have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class SlurmCluster:
    """One cluster and the commands that talk to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "slurm"
        self.env = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._extra = folder / "extra"
        self._script: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start everything and return when all nodes are idle."""
        self._extra.mkdir()
        host = socket.gethostname().split(".")[0]
        extra = EXTRA.format(host=host, ports=free_ports(2))
        (self._extra / "slurm.conf").write_text(extra)
        (self._extra / "gres.conf").write_text(GRES)
        command = [str(LOCAL), "up", "--foreground", "--folder", str(self.folder), "--cpus", "1"]
        self._script = subprocess.Popen(
            # Killing the tests, too, must end the daemons.
            ["setpriv", "--pdeathsig", "TERM", *command, "--extra", str(self._extra)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        printed = []
        for line in self._script.stdout:
            printed.append(line)
            if "local.sh down" in line:
                return
        raise RuntimeError("".join(printed))

    def stop(self) -> None:
        """End all jobs, then the daemons, then whatever of them is left."""
        try:
            self._script.terminate()
            printed, _ = self._script.communicate(timeout=120)
            assert self._script.returncode == 0, printed
        finally:
            self._script.kill()
            for pid in self._processes():
                kill(pid)

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run one of Slurm's commands and return what it printed."""
        done = subprocess.run(
            command, env=self.env, cwd=cwd, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}\n{self._logs()}")
        return done.stdout.strip()

    def submit(self, *arguments: str, cwd: Path) -> str:
        """`sbatch ARGUMENTS` from `cwd`; return the job's id."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd)

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ExitCode, …."""
        fields = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(
        self, job: str, states: tuple[str, ...] = ENDED, deadline: float = 300
    ) -> dict[str, str]:
        """Wait until the job is in one of `states`; return what Slurm knows of it then."""
        try:
            await_that(
                f"job {job} in {' or '.join(states)}",
                lambda: self.job(job)["JobState"] in states,
                deadline,
            )
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.job(job)}\n{self.output(job)}") from None
        return self.job(job)

    def cancel_all(self) -> None:
        """Cancel what is in the queue, and wait until it is empty."""
        jobs = self.run("squeue", "--noheader", "--format=%A").split()
        if jobs:
            self.run("scancel", *jobs)
            await_that("an empty queue", lambda: not self.run("squeue", "--noheader"))

    def output(self, job: str) -> str:
        """What the job has printed so far."""
        path = Path(self.job(job)["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def rank(self, job: str, rank: int) -> int:
        """The process id of a job's rank."""
        members = self._processes(f"SLURM_JOB_ID={job}", f"RANK={rank}")
        (pid,) = (pid for pid in members if pid in self._processes(f"SLURM_TASK_PID={pid}"))
        return pid

    def start_now(self, job: str) -> None:
        """Spare a requeued job the time that Slurm holds it back."""
        self.wait(job, ("PENDING",))
        # A node refuses credentials of the second in which it was told to kill the job.
        killed = int(time.time())
        await_that("the next second", lambda: int(time.time()) > killed)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def node_up(self, node: str) -> None:
        """Start a node's daemon and wait until the node takes jobs."""
        subprocess.run(["slurmd", "-N", node], env=self.env, check=True)
        listing = ("sinfo", "--noheader", f"--nodes={node}", "--format=%T")
        await_that(f"{node} idle", lambda: self.run(*listing) == "idle")

    @contextmanager
    def node_replaced(self, node: str) -> Iterator[None]:
        """Take a node away, and put the spare one in its place until the block ends.

        Not the same node again: Slurm repeats to a node that is back what it could not tell it, to
        end the job that was there, and takes the answer for one about the job that runs there now.
        It does so for some minutes at most, which a requeued job waits anyway unless a test is in
        a hurry.
        """
        self.node_down(node)
        default = [name for name in ("node1", "node2") if name != node]
        self.run("scontrol", "update", "PartitionName=main", f"Nodes={','.join(default)},node4")
        try:
            yield
        finally:
            self.run("scontrol", "update", "PartitionName=main", "Nodes=node1,node2")
            self.node_up(node)

    def node_down(self, node: str) -> None:
        """Take a node away with all that runs on it, as a crash would, and tell Slurm so."""
        kill(int((self.folder / f"slurmd-{node}.pid").read_text()))
        tasks = self._processes(f"SLURMD_NODENAME={node}")
        # A task's parent is Slurm's own process for it, which does not carry the node's name.
        for pid in {*map(parent, tasks), *tasks} - {0, 1}:
            kill(pid)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def _processes(self, *variables: str) -> list[int]:
        """The processes in whose environment are this cluster's configuration and `variables`."""
        wanted = {f"SLURM_CONF={self.env['SLURM_CONF']}".encode(), *(v.encode() for v in variables)}
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted <= set(entry.read_bytes().split(b"\0")):
                    found.append(int(entry.parent.name))
            except OSError:
                continue  # it has just ended, or is not ours to see
        return found

    def _logs(self) -> str:
        logs = sorted((*self.folder.glob("*.log"), *self.folder.glob("*.out")))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in logs)


def missing() -> str:
    """Why no Slurm can be brought up here; empty if it can."""
    if os.geteuid() != 0:
        return "a Slurm of our own needs root"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)" if absent else ""


def require_slurm() -> None:
    """Skip the test where no Slurm can be brought up; fail there if that is a CI."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def empty_queue(slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    """See that a failed test's jobs do not keep the nodes from those of other tests."""
    yield slurm
    slurm.cancel_all()


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running cluster, taken down at the end of the session."""
    require_slurm()
    # Not under pytest's own folder: a socket's path must stay short.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = SlurmCluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
