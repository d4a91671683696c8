"""Ray, quietly: an existing cluster where there is one, or else a local one."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from unittest import mock

import ray
from ray._private import node, utils

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
    """Have Ray start without the servers that a job by itself never asks.

    These are the autoscaler, what forwards logs (which we do not want), and the API's and the
    metrics' server, which `include_dashboard=False` leaves running. They took half of the CPU time
    of a job's start, and Ray waits for them; it has no public switch for any (docs/etl.md).
    """
    absent = ImportError("the metrics' server is left out")
    with (
        mock.patch.object(node.Node, "start_monitor"),
        mock.patch.object(node.Node, "start_log_monitor"),
        mock.patch.object(node.Node, "start_api_server"),
        mock.patch.object(utils, "get_dashboard_dependency_error", return_value=absent),
    ):
        yield


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
