"""Silence output of libraries that says nothing about a run."""

from __future__ import annotations

import logging
import os
import sys

from transformers.utils.logging import disable_progress_bar

_LEVELS = {
    "DeepSpeed": logging.WARNING,
    "transformers": logging.WARNING,
    # Recommends a package for 4-bit inference on CPUs whenever it is imported, as PEFT does.
    "bitsandbytes.backends.cpu.ops": logging.ERROR,
}


def quiet_libraries() -> None:
    """Set the log levels of libraries; show their progress bars on rank 0's terminal only."""
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        disable_progress_bar()
