"""DeepSpeed's configuration: a file of ds_configs/, completed with the run's own settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from etl.cli import UserError
from model.spec import Stage
from pipeline.config.run_config import REPOSITORY, accumulation


def ds_config(settings: Stage, world: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the named file, completed with the run's settings.

    Args:
        settings: the stage.
        world: the number of ranks.

    Raises:
        UserError: no such file, invalid JSON, or a field that the pipeline fills in itself.
    """
    path = ds_config_file(settings.ds_config)
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: {error}") from None
    filled = {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        # The step loop sets the accumulation boundary and scales the losses itself. DeepSpeed only
        # needs to know that gradients accumulate; packing makes the number of micro-steps vary.
        "gradient_accumulation_steps": max(2, accumulation(settings, world)),
        "gradient_clipping": settings.gradient_clipping,
        "bf16": {"enabled": settings.precision == "bf16"},
    }
    zero = config.get("zero_optimization", {}).get("stage", 0)
    if settings.peft is not None and not settings.peft.zero3 and zero == 3:
        raise UserError(
            f"ds_config {settings.ds_config!r}: {settings.peft.kind!r} keeps weights that ZeRO-3 "
            "cannot partition; want zero2"
        )
    for name in (*filled, "train_batch_size", "optimizer", "scheduler"):
        if name in config:
            raise UserError(f"{path}: leave {name!r} to the preset or the command line")
    return config | filled


def ds_config_file(name: str) -> Path:
    """Return the path of a configuration that is given by its name or its path."""
    folder = REPOSITORY / "ds_configs"
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise UserError(f"ds_config {name!r}: no such file; want one of {names}, or a path")
    return path
