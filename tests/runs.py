"""Run folders with random trained weights, made in a moment, for tests that need a trained run."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.build import build
from model.freeze import set_trainable
from model.presets import system
from model.pretraining.build import build_init, is_stage_only
from model.spec import System
from pipeline.checkpoint.checkpoints import newest_weights, write_weights
from pipeline.checkpoint.files import OBJECTIVE_WEIGHTS, WEIGHTS, CheckpointFolder, checksums
from pipeline.config.run_config import RunConfig


def random_run(
    folder: Path, preset: System | str, *, signals: float = 1.0, **changes: object
) -> RunConfig:
    """Write a run of stage SFT whose trained weights are random, also those initially zero.

    Args:
        folder: the run's.
        preset: a name: the digits presets keep their toy checkpoints, others are tiny with random
            weights; or a system of any size, with random weights.
        signals: factor of the logits of signal tokens; with a large one answers hold media.
        changes: of the stage.
    """
    toy = isinstance(preset, str) and preset.startswith("digits")
    base = preset if isinstance(preset, System) else system(preset)
    base = base if toy or isinstance(preset, System) else base.tiny()
    base = replace(base, sft=replace(base.sft, precision="fp32", **changes))
    weights = "pretrained" if toy else "random"
    config = RunConfig(stage="sft", system=base, weights=weights, data=(), output=str(folder))
    model = build(base.model, base.sft, weights=weights)
    torch.manual_seed(3)
    names = set_trainable(model, base.sft.trainable)
    trained = {
        # A norm that is about as large as the layer's own, where DoRA has magnitudes.
        name: torch.randn_like(weight) * 0.2 + (weight if "magnitude" in name else 0)
        for name, weight in model.named_parameters()
        if name in names
    }
    for branch in model.outputs:
        trained[f"outputs.{branch}.head.weight"] *= signals
    write_weights(folder, trained, identity={})
    config.save(folder)
    return config


def add_checkpoint(folder: Path, step: int, factor: float) -> Path:
    """Add a checkpoint to a run whose trained weights are a multiple of its newest ones."""
    weights = load_file(newest_weights(folder))
    checkpoints = CheckpointFolder(folder / "checkpoints")
    partial = checkpoints.partial(step)
    partial.mkdir()
    save_file({name: factor * weight for name, weight in weights.items()}, partial / WEIGHTS)
    checkpoints.publish(partial, {"identity": {}}, checksums(partial, [partial / WEIGHTS]))
    return checkpoints.final(step)


def random_pretraining_run(folder: Path) -> RunConfig:
    """Write a run of stage init, of BLIP-2's pairs, tiny and with random weights."""
    preset = system("blip_2").tiny()
    stage = replace(preset.init[0], precision="fp32")
    preset = replace(preset, init=(stage,))
    config = RunConfig(
        stage="init", system=preset, weights="random", data=("x",), output=str(folder)
    )
    model = build_init(preset.model, stage, weights="random")
    names = set_trainable(model, stage.trainable)
    weights = {name: one.detach() for name, one in model.named_parameters() if name in names}
    only = {name for name in weights if is_stage_only(preset.model, stage, name)}
    write_weights(folder, {n: w for n, w in weights.items() if n not in only}, identity={})
    checkpoint = folder / "checkpoints" / "step-00000000"
    save_file({n: weights[n] for n in only}, checkpoint / OBJECTIVE_WEIGHTS)
    config.save(folder)
    return config
