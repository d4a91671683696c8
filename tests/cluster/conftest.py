"""Fixtures of the cluster tests."""

from tests.cluster.etl_jobs import drivers, laion_shards
from tests.cluster.ray_cluster import digits_web, ray_head
from tests.cluster.slurm_cluster import slurm

__all__ = ["digits_web", "drivers", "laion_shards", "ray_head", "slurm"]
