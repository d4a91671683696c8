"""Ray, quietly: an existing cluster where there is one, or else a local one."""

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

_PATIENCE = 30.0
"""Seconds that a node may take to start; Ray's own."""
_GLANCE = 0.02
"""Seconds between two looks whether it has."""
_LEVELS = {
    "ray.data": logging.WARNING,  # tells of every execution's begin and end
    "ray.data._internal.progress": logging.ERROR,  # warns that its progress bars are off
}


@contextlib.contextmanager
def ray_cluster() -> Iterator[int]:
    """Connect to Ray and yield the cluster's number of CPUs.

    Uses a connection that is already there, or the cluster that RAY_ADDRESS names (`ray job submit`
    sets it), or starts a local one for as long as the block lasts.
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
    """Have Ray Data leave the console to the jobs. Importing it takes a second, so few do."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name, level in _LEVELS.items():  # after Ray has set its own
        logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Have Ray start without the servers that a job by itself never asks, and without naps.

    These are the autoscaler, what forwards logs (which we do not want), and the API's and the
    metrics' server, which `include_dashboard=False` leaves running. They took a third of the CPU
    time of a job's start, and Ray waits for them; it has no public switch for any (docs/etl.md).
    In a Ray that is built otherwise, names that are not there are left alone: it starts as ever.
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
    """What is known of a node once it has started; Ray's own look is once a second."""
    state = GlobalState()
    state._initialize_global_state(services._get_gcs_client_options(address))
    until = time.monotonic() + _PATIENCE
    while all(found["NodeID"] != node_id for found in state.node_table()):
        if time.monotonic() > until:
            break
        time.sleep(_GLANCE)
    return state.get_node(node_id)


def _connect() -> None:
    # "local" rather than none: Ray would else join whatever cluster it finds on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    # Ray's C++ side prints an "error" for every restartable actor of Ray Data to the console.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local job calls nobody
        with _lean():
            ray.init(address=address, num_cpus=os.cpu_count(), include_dashboard=False, **quiet)
    else:
        ray.init(address=address, **quiet)
