"""Fixtures of the cluster tests."""

from tests.cluster.ray_cluster import ray_head
from tests.cluster.slurm_cluster import slurm

__all__ = ["ray_head", "slurm"]
