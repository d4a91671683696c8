"""Fixtures of the cluster tests, and which of these tests run in one process.

Most of their time is spent waiting, so several processes run them at the same time (`make test`):
those that share a Slurm or a Ray in one, of the others each file in one.
"""

import pytest

from tests.cluster.etl_jobs import drivers, laion_shards
from tests.cluster.ray_cluster import digits_web, ray_head
from tests.cluster.slurm_cluster import empty_queue, slurm

__all__ = ["digits_web", "drivers", "empty_queue", "laion_shards", "ray_head", "slurm"]

SHARED = ("slurm", "ray_head")
"""Fixtures of which the whole run has one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cluster"):
            needed = getattr(item, "fixturenames", ())
            group = next((name for name in SHARED if name in needed), item.path.name)
            item.add_marker(pytest.mark.xdist_group(group))
