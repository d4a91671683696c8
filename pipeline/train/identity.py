"""The identity of a run: what must stay the same for a resumed run to continue its loss curve.

Not part of it, since they change neither the samples of a step nor, up to rounding and dropout, its
gradient: how a step is divided into micro-batches, whether activations are recomputed, and the
number of ranks. The number of steps may grow, see `pipeline.checkpoint.checkpoints.check_steps`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from etl.storage.atomic import file_sha256
from model.spec import ModelSpec
from model.spec.system import InitStage
from pipeline.config.decode import decode
from pipeline.config.run_config import RunConfig

_FREE = ("epochs", "micro_batch", "pack_media", "recompute")
"""Fields of a stage that a resumed run may change; `steps` stands for `epochs`."""


def run_identity(
    run: RunConfig, data: str, initial: Path | None, *, steps: int, world: int
) -> dict[str, object]:
    """Return the identity of a run.

    Args:
        run: its configuration.
        data: fingerprint of its data.
        initial: the weights that it starts from.
        steps: of the whole run.
        world: the number of ranks.
    """
    settings = _json(asdict(run.settings))
    identity: dict[str, object] = {
        "preset": run.system.name,
        "stage": run.stage,
        "data": data,
        "seed": run.seed,
        "mix": _json(asdict(run.mix)),
        "weights": run.weights,
        "initial weights": file_sha256(initial) if initial else None,
        "steps": steps,
        "model": _json(asdict(run.system.model)),
        **{name: value for name, value in settings.items() if name not in _FREE},
    }
    if isinstance(run.settings, InitStage):
        # Losses that compare samples see those of one micro-step of all ranks.
        identity |= {"ranks": world, "micro_batch": run.settings.micro_batch}
    return identity


def _json(value: object) -> Any:  # noqa: ANN401 -- any JSON
    """Return a value as it is read back from JSON: lists in place of tuples."""
    return json.loads(json.dumps(value))


def complete_identity(run: RunConfig, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's identity with the defaults of fields that were added since.

    What cannot be decoded is left as it is, and so differs from the run's.
    """
    settings, own = type(run.settings), asdict(run.settings)
    known = {
        field.name: stored.get(field.name, own[field.name])
        for field in fields(settings)
        if field.name in stored or field.name in _FREE
    }
    try:
        stage = decode(settings, known, "stage")
        model = decode(ModelSpec, stored.get("model"), "model")
    except ValueError:  # of an incompatible version
        return dict(stored)
    return {**stored, **_json(asdict(stage)), "model": _json(asdict(model))}
