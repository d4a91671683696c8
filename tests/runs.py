"""Run folders with random trained weights, made in a moment, for tests that need a trained run."""

from dataclasses import replace
from pathlib import Path

import torch

from model.build import build
from model.freeze import set_trainable
from model.presets import system
from model.spec import System
from pipeline.checkpoint.checkpoints import write_weights
from pipeline.config.run_config import RunConfig


def random_run(folder: Path, preset: System | str, **changes: object) -> RunConfig:
    """Write a run of stage SFT; the digits presets keep their toy checkpoints, others are tiny.

    All that the stage trains is random, also what is initially zero, such as half of LoRA.
    """
    base = system(preset) if isinstance(preset, str) else preset
    toy = base.name.startswith("digits")
    base = base if toy else base.tiny()
    base = replace(base, sft=replace(base.sft, precision="fp32", **changes))
    weights = "pretrained" if toy else "random"
    config = RunConfig(stage="sft", system=base, weights=weights, data=(), output=str(folder))
    model = build(base.model, base.sft, weights=weights)
    torch.manual_seed(3)
    names = set_trainable(model, base.sft.trainable)
    trained = {
        name: torch.randn_like(weight) * 0.2
        for name, weight in model.named_parameters()
        if name in names
    }
    write_weights(folder, trained, identity={})
    config.save(folder)
    return config
