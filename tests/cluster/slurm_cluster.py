"""A real Slurm for the tests: its own munge, a controller and three nodes, all on this host.

`node1` and `node2` are the default partition. `node3`, in the partition `gpu`, has two GPUs as far
as Slurm's bookkeeping goes, so that the scripts' GPU branch runs where there is no GPU. Jobs in the
partition `urgent` preempt those in `main` and, after a time of grace, those in `graceful`.
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
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

# Two nodes of one CPU share this host as a cluster's two nodes would not, so neither memory nor
# CPUs are confined. cred_expire is also how long Slurm holds back a requeued job.
# The scripts make a job's ports of its id: two clusters on a host must not count alike.
CONF = """\
ClusterName=mmloom
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
MailProg=/bin/true
ReturnToService=2
FirstJobId={ports[0]}
KillWait=20
MessageTimeout=60
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
NodeName=node3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=2 Gres=gpu:2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=node[1-2] Default=YES PriorityTier=1
PartitionName=graceful Nodes=node[1-2] PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node[1-2] PriorityTier=2
PartitionName=gpu Nodes=node3
"""
# Slurm wants a device file for each GPU; it never opens them.
GRES = "NodeName=node3 Name=gpu File=/dev/null\nNodeName=node3 Name=gpu File=/dev/zero\n"


def await_that(what: str, check: Callable[[], object], deadline: float = 60) -> None:
    """Poll `check` until it holds; fail after `deadline` seconds, naming `what`."""
    end = time.monotonic() + deadline
    while not check():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline:.0f} s")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; held together, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


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
    """The daemons of one cluster and the commands that talk to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start everything and return when all nodes are idle."""
        folder, host = self.folder, socket.gethostname().split(".")[0]
        (folder / "state").mkdir()
        conf = CONF.format(host=host, folder=folder, ports=free_ports(4))
        (folder / "slurm.conf").write_text(conf)
        (folder / "gres.conf").write_text(GRES)
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        names = ("key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid")
        names += ("log-file=munge.log", "seed-file=munge.seed")
        options = [f"--{option}={folder / file}" for option, file in (n.split("=") for n in names)]
        self._daemon("munged", "--foreground", "--force", *options)
        await_that("munge's socket", (folder / "munge.socket").is_socket)
        self._daemon("slurmctld", "-D")
        for node in ("node1", "node2", "node3"):
            self.node_up(node)

    def stop(self) -> None:
        """End all jobs, then the daemons, then whatever of them is left."""
        try:
            if "node3" in self.daemons:  # it came up
                self.run("scancel", "--user=root")
                await_that("an empty queue", lambda: not self.run("squeue", "--noheader"))
        finally:
            for process in reversed(self.daemons.values()):
                process.terminate()
            for process in self.daemons.values():
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
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
        self, job: str, states: tuple[str, ...] = ENDED, deadline: float = 120
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
        self._daemon(node, "slurmd", "-D", "-N", node)
        await_that(f"{node} idle", lambda: self._idle(node))

    def node_down(self, node: str) -> None:
        """Take a node away with all that runs on it, as a crash would, and tell Slurm so."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        tasks = self._processes(f"SLURMD_NODENAME={node}")
        # A task's parent is Slurm's own process for it, which does not carry the node's name.
        for pid in {*map(parent, tasks), *tasks} - {0, 1}:
            kill(pid)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def _idle(self, node: str) -> bool:
        dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
        if dead:
            raise RuntimeError(f"{', '.join(dead)} ended\n{self._logs()}")
        done = subprocess.run(
            ("sinfo", "--noheader", f"--nodes={node}", "--format=%T"),
            env=self.env,
            text=True,
            capture_output=True,
            check=False,  # the controller may not answer yet
        )
        return done.stdout.strip() == "idle"

    def _daemon(self, name: str, *command: str) -> None:
        command = command if name.startswith("node") else (name, *command)
        with (self.folder / f"{name}.out").open("wb") as output:
            # Killing the tests, too, must end the daemons.
            self.daemons[name] = subprocess.Popen(
                ("setpriv", "--pdeathsig", "TERM", *command),
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

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


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running cluster, taken down at the end of the session."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # Not under pytest's own folder: a socket's path must stay short.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = SlurmCluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
