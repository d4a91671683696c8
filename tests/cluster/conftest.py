"""Fixtures of the cluster tests.

Most of these tests' time is spent waiting, so several processes run them, each file in one
(`make test`). A process has one Ray and one Slurm, for all of its files.
"""

from tests.cluster.etl_jobs import drivers, laion_shards
from tests.cluster.ray_cluster import digits_web, ray_head
from tests.cluster.slurm_cluster import empty_queue, slurm

__all__ = ["digits_web", "drivers", "empty_queue", "laion_shards", "ray_head", "slurm"]
