"""Adapters are loaded onto the base and with the settings that they were trained with."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from etl.cli import UserError
from etl.storage.atomic import write_json
from model.build import add_peft, build
from model.presets import system
from model.spec.peft import Lora, Peft, QLora
from model.weights import assign, load_trained, without_adapter
from pipeline.checkpoint.adapters import ADAPTERS, adapter_record, check_adapters
from pipeline.checkpoint.snapshot import snapshot
from pipeline.config.run_config import RunConfig
from pipeline.train.train import build_model

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


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("peft", [QLora(rank=2, alpha=4), replace(LORA, use_dora=True)])
def test_adapters_are_made_for_the_backbone_that_pt_trained(peft: Peft, tmp_path: Path) -> None:
    """Four bits and DoRA's norms come from its weights; a checkpoint has these as they were."""
    earlier = tmp_path / "weights.safetensors"
    trained = dict(model_of(run_of(None), seed=1).named_parameters())
    backbone = {name: each for name, each in trained.items() if name.startswith("backbone.")}
    save_file(backbone, earlier)
    write_json(tmp_path / "manifest.json", {})
    run = run_of(peft)
    inputs = SimpleNamespace(checkpoints=SimpleNamespace(), initial_weights=earlier)
    model = build_model(replace(run, weights="random"), inputs)  # type: ignore[arg-type]
    expected = model_of(run_of(None))
    assign(expected, backbone, str(earlier))
    if isinstance(peft, QLora):
        add_peft(expected.backbone, peft)
    assert torch.allclose(logits(model), logits(expected), atol=1e-5)
    snapshot(Engine(model), tmp_path, inherited=earlier, objective_only=lambda _: False).write(
        tmp_path / "saved"
    )
    saved = load_file(tmp_path / "saved" / "weights.safetensors")
    plain = {without_adapter(name): each for name, each in saved.items()}
    assert all(torch.equal(plain[name], weight) for name, weight in backbone.items())
    again = model_of(run)
    load_trained(again, tmp_path / "saved" / "weights.safetensors")
    assert torch.equal(logits(again), logits(model))


class Engine:
    """What a snapshot asks of DeepSpeed's engine, of which there is none here."""

    checkpoint_engine = None

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def save_checkpoint(self, *words: object, **named: object) -> None:
        """Save DeepSpeed's own state: nothing."""

    def _copy_recovery_script(self, folder: str) -> None:
        """Copy DeepSpeed's script: nothing."""


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model.eval().get_submodule("backbone")(torch.tensor([[1, 65, 66]])).logits
    return found
