"""Connects to Ray with little output: to an existing cluster, or else to a new local one."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import node, services, utils
from ray._private.state import GlobalState

_START_TIMEOUT = 30.0
"""Seconds that a node may take to start; Ray's own limit."""
_POLL_INTERVAL = 0.02
"""Seconds between two checks whether it has started."""
_LEVELS = {
    "ray.data": logging.WARNING,  # logs the start and end of every execution
    "ray.data._internal.progress": logging.ERROR,  # warns that its progress bars are off
}


@contextlib.contextmanager
def ray_cluster() -> Iterator[int]:
    """Connect to Ray and yield the cluster's number of CPUs.

    Uses an open connection, or the cluster that RAY_ADDRESS names (`ray job submit` sets it), or
    starts a local one for the duration of the block.
    """
    ours = not ray.is_initialized()
    if ours:
        _connect()
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if ours:
            ray.shutdown()


def quiet_ray_data() -> None:
    """Stop Ray Data from printing. Importing it takes a second, so call this only if it is used."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name, level in _LEVELS.items():  # after Ray has set its own
        logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Have Ray start without the servers that a single local job never uses, and without sleeps.

    These are the autoscaler, the log monitor, and the API and metrics servers, which
    `include_dashboard=False` leaves running. They took a third of the CPU time of a job's start,
    and Ray waits for them; it has no public switch for any (docs/etl.md). Private names that
    another version of Ray lacks are skipped: it then starts as usual.
    """
    absent = ImportError("the metrics' server is left out")
    changes: list[tuple[Any, str, Any]] = [
        (node.Node, "start_monitor", lambda *_, **__: None),
        (node.Node, "start_log_monitor", lambda *_, **__: None),
        (node.Node, "start_api_server", lambda *_, **__: None),
        (utils, "get_dashboard_dependency_error", lambda: absent),
        (services, "get_node", _started),
    ]
    changes = [change for change in changes if hasattr(change[0], change[1])]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _started(address: str, node_id: str) -> dict[str, Any]:
    """A node's information once it has started; Ray itself checks once a second."""
    state = GlobalState()
    state._initialize_global_state(services._get_gcs_client_options(address))
    until = time.monotonic() + _START_TIMEOUT
    while all(found["NodeID"] != node_id for found in state.node_table()):
        if time.monotonic() > until:
            break
        time.sleep(_POLL_INTERVAL)
    return state.get_node(node_id)


def _connect() -> None:
    # "local" rather than none: Ray would else join whatever cluster it finds on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    # Ray's C++ side prints an "error" for every restartable actor of Ray Data to the console.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local job reports to nobody
        with _lean():
            ray.init(address=address, num_cpus=os.cpu_count(), include_dashboard=False, **quiet)
    else:
        ray.init(address=address, **quiet)
