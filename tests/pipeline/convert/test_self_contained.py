"""A run as one self-contained folder: complete, and with the run's own answers."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from etl.cli import UserError
from etl.refilter import run as refilter
from etl.storage.manifest import read_manifest
from model import load
from model.exported import distinct_names
from model.presets import PRESETS
from model.spec import Lora, SpecError
from model.spec.peft import Adapter, Prefix
from model.spec.system import InitStage
from pipeline.config.run_config import RunConfig
from pipeline.convert import safetensors_store
from pipeline.convert.export import export_run
from pipeline.evaluate.assistant import Assistant
from pipeline.evaluate.evaluate import load_run
from tests.runs import add_checkpoint, random_run
from tests.worlds import caption_shards, with_outputs

LORA = Lora(rank=2, alpha=8, targets=("q_proj", "v_proj"))
ONE_OF_EACH = (
    "digits_omni",
    "flamingo_3b",
    "instructblip_flan_t5_xl",
    "cogvlm",
    "x_llm",
    "qwen_vl",
)
"""Presets whose parts differ most: buffers, fusions, two tokenizers, tied and seq2seq backbones."""


def export(run: Path, **options: str) -> Path:
    """Export a run beside itself; return the folder."""
    output = run.with_name(f"{run.name}-exported")
    export_run(run, output, layout="mmloom", **options)
    return output


@pytest.mark.parametrize("preset", ONE_OF_EACH)
def test_the_same_weights_come_back(preset: str, tmp_path: Path) -> None:
    config = random_run(tmp_path / "run", preset)
    expected = load_run(config, tmp_path / "run")
    spec, module, tokenizer = load(export(tmp_path / "run"))
    assert spec.name == config.system.name
    state = module.state_dict()
    if isinstance(config.settings.peft, Lora):
        assert spec.stage.peft is None
        assert not any("lora_" in name for name in state)
    else:
        assert state.keys() == expected.state_dict().keys()
    for name in distinct_names(expected):
        if "lora_" not in name and ".base_layer." not in name:
            assert torch.equal(state[name], expected.state_dict()[name]), name
    assert tokenizer.decode(tokenizer.encode("seven", add_special_tokens=False)) == "seven"


@pytest.mark.parametrize("adapters", ["merged", "separate"])
def test_the_answers_are_the_run_s(adapters: str, tmp_path: Path) -> None:
    random_run(tmp_path / "run", "digits", peft=LORA)
    folder = export(tmp_path / "run", adapters=adapters)
    assert (folder / "adapter").is_dir() == (adapters == "separate")
    questions = ("What is it", "How many")
    answers = [
        [Assistant.open(each).ask(text, max_new_tokens=16) for text in questions]
        for each in (tmp_path / "run", folder)
    ]
    assert answers[0] == answers[1]
    assert any(answers[0])


@pytest.mark.parametrize("peft", [Prefix(length=3, hidden=8), Adapter(bottleneck=4)])
def test_adapters_that_cannot_be_merged_are_parts_of_the_module(peft, tmp_path: Path) -> None:
    trainable = (f"backbone.*{peft.parameter_marker}*",)
    config = random_run(tmp_path / "run", "digits", peft=peft, trainable=trainable)
    spec, module, _ = load(export(tmp_path / "run"))
    assert spec.stage.peft == peft
    expected = load_run(config, tmp_path / "run").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


def test_output_branches_are_exported_too(tmp_path: Path) -> None:
    preset = with_outputs(PRESETS["digits"]()).tiny()
    config = random_run(tmp_path / "run", preset)
    state = load(export(tmp_path / "run")).module.state_dict()
    expected = load_run(config, tmp_path / "run").outputs.state_dict(prefix="outputs.")
    assert any(name.startswith("outputs.image.generator") for name in expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def test_plain_peft_loads_separate_adapters(tmp_path: Path) -> None:
    config = random_run(tmp_path / "run", "digits", peft=LORA)
    folder = export(tmp_path / "run", adapters="separate")
    base = AutoModelForCausalLM.from_pretrained(config.system.model.backbone.weights)
    theirs = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    ids = torch.tensor([[1, 300, 301, 302]])
    ours = load_run(config, tmp_path / "run").eval().backbone
    torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(base.base_model(ids)[0][0, -1], theirs(ids).logits[0, -1][:1])
    written = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == config.system.model.backbone.weights


def test_large_models_are_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_store, "SHARD_BYTES", 1_000_000)
    random_run(tmp_path / "run", "digits")
    folder = export(tmp_path / "run")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    load(folder)


def test_bfloat16_keeps_its_type_and_rope_its_precision(tmp_path: Path) -> None:
    config = random_run(tmp_path / "run", "digits")
    stage = replace(config.system.sft, precision="bf16")
    config = replace(config, system=replace(config.system, sft=stage))
    config.save(tmp_path / "run")
    folder = export(tmp_path / "run")
    assert {each.dtype for each in load_file(folder / "model.safetensors").values()} == {
        torch.bfloat16
    }
    buffers = dict(load(folder).module.named_buffers())
    for name, expected in load_run(config, tmp_path / "run").named_buffers():
        assert torch.equal(buffers[name], expected), name


def test_a_damaged_or_foreign_folder_is_one_line(tmp_path: Path) -> None:
    random_run(tmp_path / "run", "digits")
    folder = export(tmp_path / "run")
    with pytest.raises(UserError, match="exists already"):
        export_run(tmp_path / "run", folder)
    with pytest.raises(SpecError, match="no such file; want a folder written by"):
        load(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    removed = tensors.pop("backbone.model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(SpecError, match=r"no tensor for backbone\.model\.norm\.weight \(1 missing"):
        load(folder)
    save_file(tensors | {"backbone.model.norm.weight": removed[1:]}, folder / "model.safetensors")
    with pytest.raises(SpecError, match=r"backbone\.model\.norm\.weight is \(127,\), want \(128,"):
        load(folder)
    spec = json.loads((folder / "mmloom.json").read_text())
    (folder / "mmloom.json").write_text(json.dumps(spec | {"format_version": 2}))
    with pytest.raises(SpecError, match="format_version 2, want 1"):
        load(folder)


def test_any_checkpoint_is_asked_and_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    random_run(run, "digits")
    trained = load_file(add_checkpoint(run, 4, 0.5) / "weights.safetensors")
    name = next(name for name in trained if name.startswith("inputs.image.projector."))
    steps = [{"step": step, "samples": 8 * step, "loss": 3 / step, "losses": {}} for step in (2, 4)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    (run / "evaluation").mkdir()
    scores = {"accuracy": 0.75, "checkpoint": "step-00000004"}
    (run / "evaluation" / "scores.json").write_text(json.dumps(scores))
    found = {}
    for checkpoint in ("0", "newest"):
        folder = tmp_path / f"exported-{checkpoint}"
        export_run(run, folder, checkpoint=checkpoint, layout="mmloom")
        module = load(folder).module
        found[checkpoint] = module.state_dict()[name]
        asked = Assistant.open(run, checkpoint=checkpoint).load_model()
        assert torch.equal(asked.state_dict()[name], found[checkpoint])
    assert torch.equal(found["newest"], 0.5 * found["0"])
    first, newest = ((tmp_path / f"exported-{n}" / "README.md").read_text() for n in found)
    assert "| 4 | 32 |" in newest
    assert "accuracy" in newest
    assert "| 0 | 0 |" in first
    assert "accuracy" not in first
    assert "the model card of step-00000000 is without scores" in caplog.text
    with pytest.raises(UserError, match="has no checkpoint '7'; want newest, 0, 4"):
        export_run(run, tmp_path / "out", checkpoint="7")
    with pytest.raises(UserError, match=r"--checkpoint best: .* has one set of weights"):
        Assistant.open(tmp_path / "exported-0", checkpoint="best")


def test_an_init_run_and_no_run_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        export_run(tmp_path / "nowhere", tmp_path / "out")
    system = PRESETS["dlp"]()
    assert isinstance(system.init[0], InitStage)
    RunConfig(stage="init", part="pformer", system=system, data=(), output="x").save(tmp_path)
    with pytest.raises(UserError, match="a run of stage init is not a whole model"):
        export_run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_model_card_has_lineage_scores_and_curves(tmp_path: Path) -> None:
    before = random_run(tmp_path / "pt", "digits")
    data = tmp_path / "filtered"
    words = ["--input", str(caption_shards(tmp_path / "data", 6)), "--output", str(data)]
    refilter([*words, "--min-caption", "20", "--executor", "local"])
    rows = read_manifest(data).rows
    assert 0 < rows < 6
    replace(before, stage="pt", data=(str(data),)).save(tmp_path / "pt")
    steps = [
        {"step": step, "samples": 8 * step, "loss": 3 / step, "losses": {"text": 3 / step}}
        for step in range(1, 5)
    ]
    (tmp_path / "pt" / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(step)}\n" for step in steps)
    )
    config = random_run(tmp_path / "run", "digits")
    replace(config, init_from=str(tmp_path / "pt")).save(tmp_path / "run")
    scores = {"questions": 4, "accuracy": 0.75, "word_error_rate": 0.1, "kinds": {}}
    (tmp_path / "run" / "evaluation").mkdir()
    (tmp_path / "run" / "evaluation" / "scores.json").write_text(json.dumps(scores))
    folder = export(tmp_path / "run")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "| pt | pt |" in card
    assert str(tmp_path) not in card
    assert "| 4 | 32 | 3 | 0.75 |" in card
    [row] = [line for line in card.splitlines() if line.startswith("| pt | filtered |")]
    assert f"| refilter | manifest.json | {rows} | 1 (" in row
    assert f"| caption_too_short {6 - rows} | min_caption=20, " in row
    [source] = json.loads((folder / "lineage.json").read_text())
    assert source["shards"] == [asdict(shard) for shard in read_manifest(data).shards]
    assert source["drops"] == {"caption_too_short": 6 - rows}
    header = ModelCard.load(folder / "README.md").data
    assert header.pipeline_tag == "image-text-to-text"
    assert [(one.metric_type, one.metric_value) for one in header.eval_results] == [
        ("accuracy", 0.75),
        ("word_error_rate", 0.1),
    ]
    assert {one.dataset_name for one in header.eval_results} == {"questions (4 asked)"}
    assert "| word error rate | 0.1 |" in card
    assert 'load("run-exported")' in card
    [curve] = re.findall(r"!\[.*\]\((curves/pt-text\.svg)\)", card)
    root = ElementTree.fromstring((folder / curve).read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "--c0: #2f6fc1" in root[0].text
