"""The identity of a run: what must stay the same for a resumed run to continue its loss curve.

Not part of it, since they change neither the samples of a step nor, up to rounding and dropout, its
gradient: how a step is divided into micro-batches, whether activations are recomputed, and the
number of ranks. The number of steps may grow, see `pipeline.checkpoint.checkpoints.check_steps`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.storage.atomic import file_sha256
from model.spec import ModelSpec
from model.spec.rlhf import Grpo
from model.spec.system import InitStage, RlhfStage
from pipeline.checkpoint.files import step_of
from pipeline.config.decode import decode
from pipeline.config.run_config import RunConfig
from pipeline.data.sampler import BatchSampler, steps_with
from pipeline.run_folder.metrics_writer import skipped_positions
from pipeline.train.reward_models import reward_weights

log = logging.getLogger(__name__)

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
        "mix": _mix(_json(asdict(run.mix)), run.data),
        "weights": run.weights,
        "initial weights": file_sha256(initial) if initial else None,
        "steps": steps,
        "model": _json(asdict(run.system.model)),
        **{name: value for name, value in settings.items() if name not in _FREE},
    }
    if isinstance(run.settings, RlhfStage) and isinstance(run.settings.objective, Grpo):
        for file in reward_weights(run.settings.objective.rewards):
            identity[f"reward model {file.parents[2]}"] = file_sha256(file)
    if isinstance(run.settings, InitStage):
        # Losses that compare samples see those of one micro-step of all ranks.
        identity |= {"ranks": world, "micro_batch": run.settings.micro_batch}
    return identity


def _json(value: object) -> Any:  # noqa: ANN401 -- any JSON
    """Return a value as it is read back from JSON: lists in place of tuples."""
    return json.loads(json.dumps(value))


def _mix(mix: Mapping[str, Any], folders: Sequence[str]) -> dict[str, Any]:
    """Return a mix whose shares name folders by the last part of their paths, if that is enough.

    Data that were copied, or filtered into another folder, are still the data of that share.
    """
    names = [Path(folder).name for folder in folders]
    unique = len(set(names)) == len(names)
    shares = [share.rpartition("=") for share in mix["shares"]]
    short = [f"{Path(name).name}={value}" for name, _, value in shares]
    return {**mix, "shares": short if unique else list(mix["shares"])}


def start_lineage(run: RunConfig, data: str, initial: Path | None) -> dict[str, object]:
    """Return what a start was made of, for `starts.jsonl`: it says which samples it trains on.

    Args:
        run: its configuration.
        data: fingerprint of its data.
        initial: the weights that the run began from.
    """
    settings = asdict(run.settings)
    return {
        "data": data,
        "initial_weights": None if initial is None else str(initial),
        "settings": {name: settings[name] for name in _FREE},
    }


def _same_data(
    run: RunConfig, sampler: BatchSampler, data: str, checkpoint: Path, stored: str | None
) -> str | None:
    """Return `data` in place of a fingerprint of the data before samples were removed."""
    if stored == data:
        return stored
    for older in sampler.removed.older_data():
        if older.fingerprint != stored:
            continue
        steps = steps_with(
            sampler.stream,
            sampler.global_batch,
            older.removed_r,
            range(1, step_of(checkpoint) + 1),
            skipped=skipped_positions(Path(run.output)),
        )
        if steps:
            raise UserError(
                f"{checkpoint}: was trained on samples that were removed from the data since, the "
                f"first in step {steps[0]}; want --resume with a checkpoint before that step, or a "
                "new --output"
            )
        log.info("%d samples were removed; all others keep their steps", len(older.removed_r))
        return data
    return stored


def complete_identity(
    run: RunConfig, sampler: BatchSampler, data: str, checkpoint: Path, stored: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a checkpoint's identity as this run would have written it.

    It gets the defaults of fields that were added since, and the run's data if those differ only by
    samples that were removed and that the checkpoint has not been trained on. What cannot be
    decoded is left as it is, and so differs from the run's.

    Args:
        run: the configuration.
        sampler: of the run.
        data: fingerprint of its data.
        checkpoint: the checkpoint.
        stored: its identity.

    Raises:
        UserError: the checkpoint was trained on samples that were removed since.
    """
    stored = {**stored, "data": _same_data(run, sampler, data, checkpoint, stored.get("data"))}
    if isinstance(stored.get("mix"), Mapping):
        stored["mix"] = _mix(stored["mix"], run.data)
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
