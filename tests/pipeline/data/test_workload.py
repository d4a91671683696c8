"""What data make of a stage, and a plan for them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from etl.storage.shards import write_folder
from model.build import build_tokenizer
from model.presets import system
from pipeline.cli import run as command
from pipeline.config.run_config import RunConfig
from pipeline.data.sampler import build_sampler
from pipeline.data.workload import data_workload
from tests.worlds import caption_shards, text_sample


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "texts", (text_sample(0, n) for n in range(20)), job="test")


def run_of(*data: Path, packing: str = "auto", micro_batch: int = 4) -> RunConfig:
    preset = system("digits").tiny()
    sft = replace(preset.sft, packing=packing, micro_batch=micro_batch, global_batch=8)
    return RunConfig(
        stage="sft",
        system=replace(preset, sft=sft),
        data=tuple(map(str, data)),
        output="unused",
        weights="random",
    )


def test_the_average_sample_is_the_mixs(texts: Path, tmp_path: Path) -> None:
    pictured = caption_shards(tmp_path / "captions", 20)
    run = run_of(texts, pictured)
    lengths = build_sampler(run, build_tokenizer(run.system.model, weights="random")).lengths
    assert lengths is not None
    found = data_workload(run, 2).average
    assert found.positions == pytest.approx(lengths.tokens_n.mean())
    assert found.targets == pytest.approx(lengths.targets_n.mean())
    assert found.media == {"image": 0.5}


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_the_largest_micro_batch_is_laid_out_as_in_training(packing: str, texts: Path) -> None:
    run = run_of(texts, packing=packing)
    sampler = build_sampler(run, build_tokenizer(run.system.model, weights="random"))
    assert sampler.lengths is not None
    tokens_n = sampler.lengths.tokens_n
    bins = [
        [int(tokens_n[sample.row]) for sample in samples]
        for step in range(sampler.steps)
        for micro_step in sampler.step(step, 2)
        for samples in micro_step
    ]
    expected = max(map(sum, bins)) if packing == "auto" else 4 * max(map(max, filter(None, bins)))
    assert data_workload(run, 2).positions == expected


def test_plan_takes_the_datas_lengths_a_micro_batch_and_a_cpu(
    texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "digits", "--scale", "tiny", "--stage", "sft", "--gpus", "2", "--json"]

    def planned(*more: str) -> dict[str, dict[str, float]]:
        assert command([*words, *more]) == 0
        value: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)
        return value

    longest = planned("--device", "a100")
    real = planned("--data", str(texts))
    assert real["bytes_per_gpu"]["activations"] < longest["bytes_per_gpu"]["activations"] / 4
    assert real["step_seconds"] < longest["step_seconds"]
    small = planned("--micro-batch", "1")
    assert small["micro_batch"] == 1
    assert small["bytes_per_gpu"]["logits"] == longest["bytes_per_gpu"]["logits"] / 4
    here = planned("--device", "cpu")
    assert here["flops_per_second"]["source"].startswith("measured here")  # type: ignore[attr-defined]
