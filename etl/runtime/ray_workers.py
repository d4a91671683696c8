"""Workers that are actors of a Ray cluster, on one machine or on many.

Ray Data is not used: its features (blocks, streaming, shuffles) are not needed where media never
leave the worker, and it never reassigns the item of a dead worker, so a job would wait for a node
that may not return.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from etl.cli import UserError
from etl.runtime.worker_pool import Call, Functions, WorkerDiedError

_ANSWER_SECONDS = 12.0  # of each of two questions; a head on a busy machine takes a few


class RayWorkers:
    """The actors of the cluster that this process is connected to."""

    def __init__(self) -> None:
        resources = ray.cluster_resources()
        self.cpus = max(1, int(resources.get("CPU", 1)))
        self.gpus = int(resources.get("GPU", 0))
        self._actor = ray.remote(Functions)

    def start(self, *, cpus: float, gpus: float) -> Any:  # noqa: ANN401
        """See `Workers`."""
        options = {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        return self._actor.options(**options).remote()

    def submit(self, worker: Any, call: Call) -> Any:  # noqa: ANN401
        """See `Workers`."""
        return worker.call.remote(call)

    def wait(self, tickets: Sequence[Any], timeout: float | None) -> Any | None:  # noqa: ANN401
        """See `Workers`."""
        ready, _ = ray.wait(list(tickets), timeout=timeout)
        return ready[0] if ready else None

    def result(self, ticket: Any) -> Any:  # noqa: ANN401
        """See `Workers`."""
        try:
            return ray.get(ticket)
        except (RayActorError, OutOfMemoryError) as error:
            raise WorkerDiedError(str(error).partition("\n")[0]) from error
        except RayTaskError as error:
            raise error.cause from error

    def kill(self, worker: Any) -> None:  # noqa: ANN401
        """See `Workers`."""
        with contextlib.suppress(ValueError):  # it is dead already
            ray.kill(worker)


@contextlib.contextmanager
def connect() -> Iterator[RayWorkers]:
    """Connect to Ray with little output.

    Uses an open connection, or the cluster that RAY_ADDRESS names (`ray job submit` sets it), or
    starts a local one for the duration of the block.
    """
    ours = not ray.is_initialized()
    if ours:
        # "local" rather than none: Ray would else join whatever cluster it finds on this machine.
        _init(os.environ.get("RAY_ADDRESS") or "local")
    try:
        yield RayWorkers()
    finally:
        if ours:
            ray.shutdown()


def _init(address: str) -> None:
    """Connect to the cluster at an address of `ray.init`, or start one (`local`).

    Raises:
        UserError: no cluster answers there, or it refuses this process.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local job reports to nobody
        options |= {"num_cpus": os.cpu_count(), "include_dashboard": False}
        ray.init(address=address, **options)
        return
    _require_head(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _require_head(address: str) -> None:
    """Raise UserError where no head of a cluster answers: Ray itself would try for minutes."""
    target = address.removeprefix("ray://")
    host, _, port = target.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise UserError(f"RAY_ADDRESS={address}: want HOST:PORT of a Ray cluster's head")
    # A firewall may drop what is sent, and another kind of server may take a connection: only what
    # speaks gRPC is ready. Behind TLS that cannot be asked without Ray's certificates.
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            with grpc.insecure_channel(target) as channel:
                grpc.channel_ready_future(channel).result(timeout=_ANSWER_SECONDS)
    except grpc.FutureTimeoutError:
        raise _no_cluster(address, "what answers there is not Ray") from None
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, reason: object) -> UserError:
    why = str(reason).partition("\n")[0]
    return UserError(
        f"RAY_ADDRESS={address}: no Ray cluster answers there ({why}); correct or unset it, or"
        " give --executor local"
    )
