"""Options become a fully resolved configuration; a mistake is reported in one line."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from etl.cli import UserError
from model.presets import PRESETS, system
from model.spec import SpecError
from pipeline.config.decode import decode
from pipeline.config.deepspeed import ds_config
from pipeline.config.run_config import (
    RunConfig,
    StageName,
    accumulation,
    parse_train_options,
    read_config,
    resolve,
)


def resolved(*words: str, stage: StageName = "pt") -> RunConfig:
    return resolve(parse_train_options(stage, words), stage)


def minimal(*words: str) -> RunConfig:
    return resolved("digits", "--data", "d", "--output", "o", *words)


def test_options_override_the_fields_of_one_stage_only() -> None:
    run = minimal("--learning-rate", "0.5", "--max-steps", "7", "--seed", "3")
    assert run.settings == replace(system("digits").pt, learning_rate=0.5)
    assert run.system.sft == system("digits").sft
    assert (run.max_steps, run.seed) == (7, 3)


def test_gradient_clipping_is_an_option_of_the_stage() -> None:
    assert ds_config(minimal().settings, 1)["gradient_clipping"] == 1.0
    for value in ("0.25", "0"):
        run = minimal("--gradient-clipping", value)
        assert ds_config(run.settings, 1)["gradient_clipping"] == float(value)
    with pytest.raises(UserError, match=r"--gradient-clipping: -1\.0, want 0 or more"):
        minimal("--gradient-clipping=-1")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pt.micro_batch=0", r"pt\.micro_batch: 0, want 1 or more"),
        ("pt.global_batch=-8", r"pt\.global_batch: -8, want 1 or more"),
        ("pt.learning_rate=-1", r"pt\.learning_rate: -1\.0, want 0 or more"),
        ("pt.epochs=0", r"pt\.epochs: 0, want 1 or more"),
        ("pt.max_tokens=0", r"pt\.max_tokens: 0, want 1 or more"),
        ("pt.warmup=5", r"pt\.warmup: 5\.0, want a number from 0 to 1"),
        ("pt.learning_rate=NaN", r"pt\.learning_rate: nan, want 0 or more"),
        ("sft.peft.rank=0", r"sft\.peft\.rank: 0, want 1 or more"),
        ("sft.peft.alpha=0", r"sft\.peft\.alpha: 0, want 1 or more"),
        ("sft.peft.dropout=2", r"sft\.peft\.dropout: 2\.0, want a number from 0 to 1"),
        ("model.backbone.layers=0", r"backbone\.layers: 0, want 1 or more"),
        ("model.inputs.image.encoder.layers=0", r"encoder\.layers: 0, want 1 or more"),
    ],
)
def test_a_value_out_of_its_range_is_one_line(setting: str, message: str) -> None:
    with pytest.raises((UserError, SpecError), match=message):
        minimal("--set", setting)


def test_a_pre_trained_part_has_settings_of_its_own() -> None:
    words = ("--data", "d", "--output", "o", "--part", "pformer", "--epochs", "7")
    run = resolved("dlp", *words, stage="init")
    sentences, image_text = system("dlp").init
    assert run.settings == replace(sentences, epochs=7)
    assert run.system.init[1] == image_text


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("digits", "digits has no stage before MM-PT"),
        ("dlp", "dlp pre-trains pformer, then qformer; choose one with --part"),
    ],
)
def test_a_part_must_exist_and_be_named(preset: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolved(preset, "--data", "d", "--output", "o", stage="init")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_written_configuration_reads_back_equal(name: str, suffix: str, tmp_path: Path) -> None:
    run = RunConfig(stage="sft", system=system(name), data=("a", "b"), output="o")
    run.save(tmp_path)
    file = tmp_path / f"config{suffix}"
    if suffix == ".yaml":
        file.write_text(yaml.safe_dump(json.loads((tmp_path / "config.json").read_text())))
    assert read_config(file) == run
    assert resolved(str(file), stage="sft") == run


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1.5E4", 1.5e4), ("0.25", 0.25)])
def test_numbers_in_yaml_may_have_exponents(text: str, value: float, tmp_path: Path) -> None:
    run = RunConfig(stage="pt", system=system("digits"), data=("a",), output="o")
    lines = yaml.safe_dump(json.loads(json.dumps(asdict(run)))).splitlines()
    file = tmp_path / "config.yaml"
    file.write_text(
        "\n".join(re.sub(r"(learning_rate:) .*", rf"\1 {text}", line) for line in lines)
    )
    assert read_config(file).settings.learning_rate == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, "run.sed: no such field; did you mean 'seed'?"),
        ({"seed": "x"}, "run.seed: 'x', want int"),
        ({"seed": True}, "run.seed: True, want int"),
        ({"weights": "some"}, "run.weights: 'some', want one of 'pretrained', 'random'"),
        ({"data": "folder"}, "run.data: 'folder', want a list"),
        ({"system": {}}, "run.system.name: missing"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], message: str) -> None:
    good = asdict(RunConfig(stage="pt", system=system("digits"), data=("a",), output="o"))
    with pytest.raises(UserError) as caught:
        decode(RunConfig, good | change, "run")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digitz", "--data", "d", "--output", "o"], "did you mean 'digits'?"),
        (["digits", "--output", "o"], "--data"),
        (["digits", "--data", "d"], "--output"),
        (["digits", "--data", "d", "--output", "o", "--save-every", "0"], "--save-every: 0"),
        (
            ["digits", "--data", "d", "--output", "o", "--validate-every", "5"],
            "--validate-every 5: name held-out shards with --validation-data",
        ),
        (
            ["digits", "--data", "d", "e", "--output", "o", "--validation-data", "./e"],
            "--validation-data ./e: is in --data, too",
        ),
        (
            ["digits", "--data", "d", "--output", "o", "--validation-samples", "0"],
            "--validation-samples: 0, want 1 or more",
        ),
        (["none.json"], "none.json: no such file"),
        (["digits", "--data", "d", "--outptu", "o"], "--output"),
        (["digits", "--max-steps", "many"], "--max-steps"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises((UserError, SpecError)) as caught:
        resolved(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_that_does_not_divide_is_refused_where_losses_compare_samples() -> None:
    settings = replace(system("dlp").tiny().init[0], global_batch=100, micro_batch=16)
    with pytest.raises(UserError, match=r"100 is not a multiple .* 96 would be"):
        accumulation(settings, ranks=2)
    assert accumulation(replace(settings, global_batch=96), ranks=2) == 3
    pairs = replace(system("digits").pt, global_batch=100, micro_batch=16)
    assert accumulation(pairs, ranks=2) == 4  # the last micro-batch is filled with dummies
