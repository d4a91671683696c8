"""Adapters are loaded onto the base and with the settings that they were trained with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from etl.cli import UserError
from etl.storage.atomic import write_json
from model.build import build
from model.presets import system
from model.spec.peft import Lora, Peft
from model.weights import assign, without_adapter
from pipeline.checkpoint.adapters import ADAPTERS, adapter_record, check_adapters
from pipeline.config.run_config import RunConfig

LORA = Lora(rank=2, alpha=4, dropout=0.0)


def run_of(peft: Peft | None, *, base: str = "base", precision: str = "fp32") -> RunConfig:
    preset = system("digits").tiny()
    model = replace(preset.model, backbone=replace(preset.model.backbone, weights=base))
    sft = replace(preset.sft, peft=peft, precision=precision)
    preset = replace(preset, model=model, sft=sft)
    return RunConfig(stage="sft", system=preset, data=("data",), output="run")


def model_of(run: RunConfig, *, seed: int = 0) -> nn.Module:
    return build(run.system.model, run.settings, weights="random", seed=seed)


def stored(folder: Path, run: RunConfig, model: nn.Module) -> Path:
    """Write the manifest of a checkpoint; return the path of its weights."""
    write_json(folder / "manifest.json", {ADAPTERS: adapter_record(run, model)})
    return folder / "weights.safetensors"


def test_the_same_base_fits_whatever_its_precision_and_trained_adapters(tmp_path: Path) -> None:
    run = run_of(LORA)
    model = model_of(run)
    weights = stored(tmp_path, run, model)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.ones_(weight)
    check_adapters(weights, adapter_record(run, model))
    half = run_of(LORA, precision="bf16")
    check_adapters(weights, adapter_record(half, model.bfloat16()))
    check_adapters(weights, adapter_record(run_of(None), model))
    write_json(tmp_path / "manifest.json", {})  # of an older version
    check_adapters(weights, adapter_record(run, model))


@pytest.mark.parametrize(
    ("other", "seed", "difference"),
    [
        (run_of(LORA, base="vicuna"), 0, r"on base \(kind lora, rank 2, alpha 4\); .* has vicuna"),
        (run_of(replace(LORA, alpha=8)), 0, r"this stage has base \(kind lora, rank 2, alpha 8\)"),
        (run_of(LORA), 1, "whose content is another now"),
    ],
)
def test_another_base_or_alpha_is_one_line(
    other: RunConfig, seed: int, difference: str, tmp_path: Path
) -> None:
    run = run_of(LORA)
    weights = stored(tmp_path, run, model_of(run))
    with pytest.raises(UserError, match=f"weights.safetensors: its adapters .*{difference}"):
        check_adapters(weights, adapter_record(other, model_of(other, seed=seed)))


def test_a_whole_backbone_of_one_stage_is_the_base_of_the_next_ones_adapters() -> None:
    """VILA trains the whole backbone in MM-PT; here MM-IT adapts it."""
    trained = dict(model_of(run_of(None), seed=1).named_parameters())
    adapted = model_of(run_of(LORA), seed=0)
    assign(adapted, trained, "weights.safetensors")
    own = dict(adapted.named_parameters())
    assert any(".base_layer." in name for name in own)
    for name, weight in own.items():
        if "lora_" not in name:
            assert torch.equal(weight, trained[without_adapter(name)]), name
