"""A preset may be a file: as `show` prints it, a run's configuration, or a file of changes."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from etl.cli import UserError
from model.build import build
from model.freeze import set_trainable
from model.presets import PRESETS, system
from model.spec import Mlp, SpecError
from model.spec.hf_backbones import HfCausal
from pipeline.config.parameter_groups import parameter_groups
from pipeline.config.run_config import (
    REPOSITORY,
    PresetOptions,
    RunConfig,
    StageName,
    changed_preset,
    default_options,
    parse_train_options,
    resolve,
)

QWEN = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
}
BACKBONE = {"kind": "hf_causal", "weights": "q", "config": QWEN}


def written(folder: Path, value: object, name: str = "own.json") -> str:
    file = folder / name
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(file)


@pytest.mark.parametrize("name", PRESETS)
def test_a_shown_preset_is_a_preset_file(name: str, tmp_path: Path) -> None:
    file = written(tmp_path, asdict(system(name)))
    assert changed_preset(file, "full", ()) == system(name)
    assert changed_preset(file, "tiny", ()) == system(name).tiny()


def test_a_backbone_of_transformers_survives_the_file(tmp_path: Path) -> None:
    own = changed_preset("llava", "full", [f"model.backbone={json.dumps(BACKBONE)}"])
    read = changed_preset(written(tmp_path, asdict(own)), "full", ())
    assert read == own
    assert isinstance(read.model.backbone, HfCausal)
    assert (read.model.backbone.width, read.model.backbone.head_width) == (1024, 128)


@pytest.mark.parametrize("given", [None, "absent"])
def test_a_stage_that_is_not_trained_may_be_left_out(given: str | None, tmp_path: Path) -> None:
    fields = asdict(system("digits"))
    if given is None:
        fields["sft"] = None
    else:
        del fields["sft"]
    read = changed_preset(written(tmp_path, fields), "full", ())
    assert read.tiny().stage("pt") == system("digits").tiny().pt
    with pytest.raises(SpecError, match="digits has no stage 'sft'; add one to its file"):
        read.stage("sft")


THIN = """\
preset: digits
set:
  model.inputs.image.projector.depth: 3
pt: {learning_rate: 1e-2, epochs: 7}
sft:
  peft: {rank: 4}
data: [captions, more]
mix: {shares: [more=10%]}
seed: 5
"""


def test_a_file_of_changes_says_what_differs_from_a_preset(tmp_path: Path) -> None:
    file = written(tmp_path, THIN, "own.yaml")
    run = resolve(parse_train_options("pt", [file, "--output", "o", "--epochs", "8"]), "pt")
    pt = system("digits").stage("pt")
    assert run.settings == replace(pt, learning_rate=1e-2, epochs=8)
    assert run.system.stage("sft").peft == replace(system("digits").stage("sft").peft, rank=4)
    assert run.system.model.inputs[0].projector == Mlp(depth=3)
    assert (run.data, run.seed, run.mix.shares) == (("captions", "more"), 5, ("more=10%",))
    assert changed_preset(file, "full", ()).pt == replace(pt, learning_rate=1e-2, epochs=7)


def test_a_presets_name_is_one_where_a_folder_has_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run folder may."""
    (tmp_path / "digits").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert changed_preset("digits", "full", ()).name == "digits"
    with pytest.raises(UserError, match="mine: a folder; want a preset's name"):
        changed_preset("mine", "full", ())


def test_a_file_of_changes_may_start_from_a_preset_file_beside_it(tmp_path: Path) -> None:
    written(tmp_path, asdict(replace(system("digits"), name="mine")), "mine.json")
    file = written(tmp_path, "preset: mine.json\npt: {epochs: 2}\nsft: null\n", "changes.yml")
    own = changed_preset(file, "full", ())
    assert (own.name, own.stage("pt").epochs, own.sft) == ("mine", 2, None)


def test_an_object_with_a_kind_replaces_the_presets(tmp_path: Path) -> None:
    file = written(tmp_path, {"preset": "digits", "sft": {"peft": {"kind": "prefix"}}})
    peft = changed_preset(file, "full", ()).stage("sft").peft
    assert peft is not None and peft.kind == "prefix"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "digitz"}, "did you mean 'digits'"),
        ({"preset": "none.json"}, "none.json: no such file"),
        ({"pt": {"epoch": 2}}, "pt.epoch: no such field; did you mean 'epochs'?"),
        ({"pt": {"epochs": "two"}}, "pt.epochs: 'two', want int"),
        ({"set": {"model.backbone.layer": 1}}, "no such field; did you mean 'layers'?"),
        ({"dat": ["d"]}, "own.json.dat: no such field; did you mean 'data'?"),
        ({"stage": "sft"}, "a run of stage 'sft', not 'pt'"),
    ],
)
def test_a_mistake_in_a_file_of_changes_is_one_line(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    file = written(tmp_path, {"preset": "digits", "data": ["d"], **change})
    with pytest.raises((UserError, SpecError)) as error:
        default_options(PresetOptions(preset=file), "pt", part=None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_tiny_applies_to_components_that_options_bring_and_numbers_stay() -> None:
    own = changed_preset(
        "llava", "tiny", [f"model.backbone={json.dumps(BACKBONE)}", "pt.learning_rate=0.25"]
    )
    backbone = own.model.backbone
    assert (backbone.width, backbone.layers, backbone.vocabulary) == (64, 2, 384)
    assert own.stage("pt").learning_rate == 0.25
    assert changed_preset("llava", "tiny", ["model.backbone.layers=3"]).model.backbone.layers == 3


def test_a_run_is_repeated_from_its_own_file(tmp_path: Path) -> None:
    run = RunConfig(stage="pt", system=system("digits"), data=("a",), output="o", seed=3)
    run.save(tmp_path)
    file = str(tmp_path / "config.json")
    assert resolve(parse_train_options("pt", [file]), "pt") == run
    assert changed_preset(file, "full", ()) == run.system


EXAMPLES = sorted((REPOSITORY / "docs" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_examples_are_runs_whose_patterns_match(file: Path) -> None:
    words = (str(file), "--output", "o", "--scale", "tiny")
    stage: StageName = "sft" if "stage: sft" in file.read_text() else "pt"
    data = () if "data:" in file.read_text() else ("--data", "d")
    run = resolve(parse_train_options(stage, [*words, *data]), stage)
    for name in ("pt", "sft"):
        settings = run.system.stage(name)
        model = build(run.system.model, settings, weights="random")
        set_trainable(model, settings.trainable)
        assert {group.label for group in parameter_groups(model, settings)} >= {
            group.pattern for group in settings.groups
        }


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3


RECIPES = sorted((REPOSITORY / "docs" / "examples" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipes_name_their_source_and_their_patterns_match(file: Path) -> None:
    text = file.read_text()
    assert re.search(r"^#.*arXiv:? ?\d{4}\.\d{5}", text, re.MULTILINE)
    [stage] = re.findall(r"^stage: (init|pt|sft)$", text, re.MULTILINE)
    words = [str(file), "--output", "o", "--scale", "tiny"]
    run = resolve(parse_train_options(stage, words), stage)
    assert run.data
    if stage == "init":
        return  # its modules are not the model's: tests/cluster/test_recipes.py
    with torch.device("meta"):
        model = build(run.system.model, run.settings, weights="random")
    set_trainable(model, run.settings.trainable)
    labels = {group.label for group in parameter_groups(model, run.settings)}
    assert labels >= {group.pattern for group in run.settings.groups}


def test_the_page_of_recipes_lists_every_one() -> None:
    page = (REPOSITORY / "docs" / "recipes.md").read_text()
    assert {file.stem for file in RECIPES} == set(re.findall(r"recipes/(\w+)\.yaml", page))


def test_rlhf_takes_the_system_of_an_sft(tmp_path: Path) -> None:
    """Its data and options are those of another stage."""
    run = {"stage": "sft", "system": asdict(system("digits")), "data": ["d"], "seed": 3}
    file = written(tmp_path, run | {"weights": "random"})
    own = default_options(PresetOptions(preset=file), "rlhf", part=None)
    assert (own.data, own.seed, own.weights) == ((), 0, "random")
