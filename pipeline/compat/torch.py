"""torch's internals: the time-outs of process groups that others have created."""

from __future__ import annotations

from datetime import timedelta

from torch.distributed import distributed_c10d


def set_group_timeouts(timeout: timedelta) -> None:
    """Set the time-out of collectives in all existing groups.

    DeepSpeed creates groups without one, and they do not take that of the default group.
    """
    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(timeout, group)
