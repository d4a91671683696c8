"""Every shipped DeepSpeed configuration is one that DeepSpeed takes, and fits every preset."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from etl.cli import UserError
from model.presets import PRESETS
from model.spec.peft import QLora
from pipeline.config.deepspeed import ds_config

FOLDER = Path(__file__).parents[1] / "ds_configs"
FILES = sorted(FOLDER.glob("*.json"))
FILLED_IN = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "gradient_clipping",
    "optimizer",
    "scheduler",
}


def test_the_named_ones_are_there():
    assert [file.stem for file in FILES] == ["zero2", "zero3", "zero3_offload"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_deepspeed_accepts_it(file, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    stored = json.loads(file.read_text())
    assert not FILLED_IN & stored.keys(), "the pipeline fills these in"
    filled = stored | {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
    }
    config = DeepSpeedConfig(filled)
    assert config.train_batch_size == 8
    assert config.zero_config.stage == (2 if file.stem == "zero2" else 3)
    assert config.zero_config.overlap_comm
    # Keys that DeepSpeed does not know would end up here instead of having an effect.
    assert not config.zero_config.model_extra


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_shipped_ones(name):
    system = PRESETS[name]()
    for stage in (system.pt, system.sft):
        assert (FOLDER / f"{stage.ds_config}.json").is_file()


def test_zero3_partitions_the_digits_preset():
    """At DeepSpeed's default threshold all of its weights would stay whole on every rank."""
    stored = json.loads((FOLDER / "zero3.json").read_text())
    width = PRESETS["digits"]().model.backbone.width
    assert stored["zero_optimization"]["stage3_param_persistence_threshold"] < width * width


def test_qlora_under_zero3_is_one_line():
    sft = replace(PRESETS["digits"]().sft, peft=QLora(), ds_config="zero3")
    with pytest.raises(UserError, match="'qlora' keeps weights that ZeRO-3 cannot partition"):
        ds_config(sft, 1)
    assert ds_config(replace(sft, ds_config="zero2"), 1)["zero_optimization"]["stage"] == 2
