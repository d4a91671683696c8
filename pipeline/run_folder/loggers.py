"""TensorBoard and Weights & Biases, through their own libraries; off unless asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from etl.storage.atomic import atomic_file


class Logger(Protocol):
    """Something that shows a run's figures elsewhere."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand on one step's figures."""

    def close(self) -> None:
        """Write what is pending."""


def start_loggers(
    names: Sequence[str], run: Path, config: Mapping[str, object], *, step: int
) -> list[Logger]:
    """Start the named trackers on the rank that writes.

    Args:
        names: which.
        run: the run folder; TensorBoard's files and W&B's lie in it.
        config: the resolved configuration.
        step: completed steps; a resumed run goes on in the same curves.
    """
    made: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return [made[name](run, config, step=step) for name in names]


class TensorBoard:
    """Event files in RUN/tensorboard; what a killed run wrote past `step` is hidden."""

    def __init__(self, run: Path, config: Mapping[str, object], *, step: int) -> None:
        library = import_module("torch.utils.tensorboard")
        self._writer = library.SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        if step == 0:
            self._writer.add_text("config", f"```\n{config}\n```", 0)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write one step's figures."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class WeightsAndBiases:
    """One W&B run for one run folder, however often it was resumed.

    Project, entity and mode are W&B's own variables (`WANDB_PROJECT`, `WANDB_MODE=offline` …).
    """

    def __init__(self, run: Path, config: Mapping[str, object], *, step: int) -> None:
        identity = run / "wandb" / "id"
        if not identity.is_file():
            identity.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(identity) as stream:
                stream.write(uuid4().hex[:8].encode())
        self._library = import_module("wandb")
        self._run = self._library.init(
            dir=str(run),
            name=run.resolve().name,
            id=identity.read_text(),
            resume="allow",
            config=dict(config),
            settings=self._library.Settings(console="off", silent=True),
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand on one step's figures."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Send what is pending."""
        self._run.finish()


def flat(figures: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Return a step's figures as names with slashes and numbers; a list becomes its largest."""
    found: dict[str, float] = {}
    for key, value in figures.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, list) and value:
            found[f"{prefix}{key}/max"] = max(value)
        elif isinstance(value, int | float):
            found[prefix + key] = value
    return found
