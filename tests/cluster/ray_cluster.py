"""A real Ray head on loopback with a dashboard to submit jobs to; the digits world's server."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
_MARK = "MMLOOM_TEST_MARK"
_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "ray-client-server-port",
    "node-manager-port",
    "object-manager-port",
    "metrics-export-port",
)


DEFAULT_PORTS = {"dashboard-agent-listen-port": 52365, "ray-client-server-port": 10001}
"""Ray's default ports: most clusters on a host compete for them."""


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """Where a head listens, and the environment in which its clients speak to it.

    `dashboard` is where jobs are submitted, `address` what drivers connect to.
    """

    dashboard: str
    address: str
    env: dict[str, str]

    def ask(self, path: str) -> Any:
        """What the dashboard answers to a GET."""
        proof = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.dashboard}/api/{path}", headers=proof)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@dataclass(frozen=True, kw_only=True)
class DigitsWeb:
    """The digits world being served: its lists, and the truth about them."""

    folder: Path
    planted: dict


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of loopback."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def marked(env: dict[str, str]) -> Iterator[dict[str, str]]:
    """Put a mark into an environment; at the end, kill every process that inherited it.

    A head that is asked to stop takes its time, and the children of a killed driver live on for a
    while, under another parent.
    """
    mark = f"{_MARK}={secrets.token_hex(8)}"
    try:
        yield {**env, _MARK: mark.partition("=")[2]}
    finally:
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if entry.name.isdigit() and mark in (entry / "environ").read_text(errors="replace"):
                    os.kill(int(entry.name), signal.SIGKILL)


@contextmanager
def running(command: list[str], *, ready: str, env: dict[str, str]) -> Iterator[None]:
    """Start a command, wait for the line of its output that says it is ready; end it."""
    with marked(env) as env_with_mark:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env_with_mark,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seen = []
        for line in process.stdout:
            seen.append(line)
            if ready in line:
                break
        else:
            raise RuntimeError(f"{command[:3]} ended before {ready!r}:\n{''.join(seen)}")
        yield
    process.wait()
    process.stdout.close()


@contextmanager
def start_ray(folder: Path) -> Iterator[RayHead]:
    """Bring up a head with two CPUs; nobody without its token may use it."""
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    ports |= {name: port for name, port in DEFAULT_PORTS.items() if is_free(port)}
    env = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray's own 15 starves where other tests run beside
        "RAY_agent_register_timeout_ms": "180000",  # 30 s are too few on a busy machine
    }
    env.pop("RAY_ADDRESS", None)
    command = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        "--include-dashboard=true",
        "--object-store-memory=200000000",
        "--disable-usage-stats",
        f"--temp-dir={folder}",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(running(command, ready="Ray runtime started", env=env))
        except RuntimeError:  # on a busy machine: Ray gives it 30 s, which no option changes
            stack.enter_context(running(command, ready="Ray runtime started", env=env))
        yield RayHead(
            dashboard=f"http://127.0.0.1:{ports['dashboard-port']}",
            address=f"127.0.0.1:{ports['port']}",
            env=env,
        )


@contextmanager
def serve_digits(
    folder: Path, *, captions: int, dialogues: int, others: int = 0
) -> Iterator[DigitsWeb]:
    """Write a small digits world and serve it."""
    command = [sys.executable, "-m", "etl.digits", "--output", str(folder), "--serve", "0"]
    command += ["--captions", str(captions), "--dialogues", str(dialogues), "--questions", "5"]
    command += ["--others", str(others)]
    with running(command, ready="serving", env=dict(os.environ)):
        planted = json.loads((folder / "planted.json").read_bytes())
        yield DigitsWeb(folder=folder, planted=planted)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """The one cluster of the whole process; who takes away its head starts another."""
    # Not in pytest's folder: the path of a socket has an end.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        start_ray(Path(folder)) as head,
    ):
        yield head


@pytest.fixture(scope="session")
def digits_web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DigitsWeb]:
    """The one served world of the whole process; who changes a file puts it back."""
    folder = tmp_path_factory.mktemp("web")
    with serve_digits(folder, captions=200, dialogues=40, others=6) as web:
        yield web
