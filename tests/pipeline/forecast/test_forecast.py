"""Forecasts of step times and checkpoint sizes."""

from dataclasses import replace

import pytest
from rich.console import Console

from etl.cli import UserError
from model.presets import system
from pipeline.forecast.forecast import (
    checkpoint_bytes,
    forecast_table,
    make_forecast,
    typical_product,
)
from pipeline.forecast.peak_flops import measured, of_this_device, published
from pipeline.forecast.plan import plan
from pipeline.forecast.workload import Workload


def test_forecasts_of_published_runs_are_plausible():
    """LLaVA-1.5-7B: 558K captions in about 3.5 h, 665K instructions in about 10 h on 8 A100.

    Liu et al. 2023, *Improved baselines*, §3.3. They trained all weights in SFT, unlike this
    preset; the mean lengths are those of its data, to within a quarter.
    """
    preset = system("llava_1_5_7b")
    peak = published("a100", "bf16")
    captions = Workload(positions=620, targets=30, pairs=620 * 620 / 2, media={"image": 1})
    pt = make_forecast(preset, "pt", plan(preset, "pt", 8), peak, captions)
    hours = 558_000 / 256 * pt.step_seconds / 3600
    assert 1.5 < hours < 5
    full = replace(
        preset, sft=replace(preset.sft, peft=None, trainable=("backbone.*", "inputs.*proj*"))
    )
    dialogues = Workload(positions=900, targets=250, pairs=900 * 900 / 2, media={"image": 0.94})
    sft = make_forecast(full, "sft", plan(full, "sft", 8), peak, dialogues)
    hours = 665_000 / 128 * sft.step_seconds / 3600
    assert 5 < hours < 15


def test_step_time_is_flops_divided_by_flops_per_second():
    preset = system("llava_1_5_7b")
    eight, sixteen = (plan(preset, "pt", gpus) for gpus in (8, 16))
    a100, h100 = (published(name, "bf16") for name in ("a100", "h100"))
    slow = make_forecast(preset, "pt", eight, a100)
    assert make_forecast(preset, "pt", sixteen, a100).step_seconds == slow.step_seconds / 2
    fast = make_forecast(preset, "pt", eight, h100)
    assert slow.step_seconds / fast.step_seconds == pytest.approx(989.4 / 312)
    assert slow.sample.model == pytest.approx(sum(w.model for w in slow.work.values()))


def test_a_checkpoint_has_the_trainable_weights():
    stage = system("llava_1_5_7b").pt
    third = checkpoint_bytes(replace(stage, ds_config="zero3"), 1000, 8)
    assert third == {"trained weights": 2000, "optimizer states": 12_000}
    second = checkpoint_bytes(replace(stage, ds_config="zero2"), 1000, 8)
    assert second["trained weights"] == 4000


def test_an_unknown_device_is_reported():
    with pytest.raises(UserError, match="--device h900: unknown; want one of a10g"):
        published("h900", "bf16")


def test_this_machine_is_measured_only_on_request():
    assert of_this_device("fp32", (8, 8, 8), measure=False) is None
    peak = measured("fp32", (64, 64, 64))
    assert peak.peak > 1e6
    assert not peak.published
    assert "measured here" in str(peak)


def test_a_forecast_as_a_table_and_as_json():
    preset = system("digits")
    forecast = make_forecast(preset, "pt", plan(preset, "pt", 2), published("a100", "fp32"))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(forecast_table(forecast))
    text = captured.get()
    assert "KiB per checkpoint" in text or "MiB per checkpoint" in text
    assert "40% of 19.5 TFLOP/s, a100's published fp32 peak" in " ".join(text.split())
    printed = forecast.to_json()
    assert printed["flops_per_sample"]["total"] == forecast.sample.model
    assert printed["checkpoint_bytes"]["total"] == sum(forecast.checkpoint_bytes.values())


def test_the_measured_multiplication_is_the_models():
    preset = system("llava_1_5_7b")
    assert typical_product(preset.model, preset.pt) == (4096, 4096, 11_008)
