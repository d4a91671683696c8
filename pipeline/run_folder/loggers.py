"""TensorBoard and Weights & Biases, through their own libraries; off by default (`--log-to`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from etl.storage.atomic import atomic_file


class Logger(Protocol):
    """Shows the metrics of a run in another tool."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step's metrics."""

    def close(self) -> None:
        """Write what is pending."""


def start_loggers(
    names: Sequence[str], run: Path, config: Mapping[str, object], *, step: int
) -> list[Logger]:
    """Start loggers; called on rank 0 alone.

    Args:
        names: the loggers to start.
        run: the run folder, in which TensorBoard and W&B keep their files.
        config: the resolved configuration.
        step: completed steps; a resumed run continues the same curves.
    """
    classes: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return [classes[name](run, config, step=step) for name in names]


class TensorBoard:
    """Event files in RUN/tensorboard; what a killed run wrote after `step` is hidden."""

    def __init__(self, run: Path, config: Mapping[str, object], *, step: int) -> None:
        library = import_module("torch.utils.tensorboard")
        self._writer = library.SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        if step == 0:
            self._writer.add_text("config", f"```\n{config}\n```", 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step's metrics."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class WeightsAndBiases:
    """One W&B run per run folder, however often that is resumed.

    Project, entity and mode come from W&B's own variables (`WANDB_PROJECT`, `WANDB_MODE` …).
    """

    def __init__(self, run: Path, config: Mapping[str, object], *, step: int) -> None:
        run_id = run / "wandb" / "id"
        if not run_id.is_file():
            run_id.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(run_id) as stream:
                stream.write(uuid4().hex[:8].encode())
        self._library = import_module("wandb")
        self._run = self._library.init(
            dir=str(run),
            name=run.resolve().name,
            id=run_id.read_text(),
            resume="allow",
            config=dict(config),
            settings=self._library.Settings(console="off", silent=True),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step's metrics."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Send what is pending."""
        self._run.finish()


def flat(metrics: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Return nested metrics as a flat mapping of names with slashes; of a list, its maximum."""
    flattened: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, list) and value:
            flattened[f"{prefix}{key}/max"] = max(value)
        elif isinstance(value, int | float):
            flattened[prefix + key] = value
    return flattened
