"""Import and export: every tensor once, bit for bit, and transformers loads what we export."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration, PreTrainedModel

from etl.cli import UserError, main
from model.build import build, build_text_tokenizer, build_tokenizer
from model.presets import system
from model.spec import Lora, SpecError
from model.spec.image import EvaClip
from model.spec.image_processor import ImageProcessor
from model.spec.peft import Peft, QLora
from pipeline.checkpoint.checkpoints import newest_weights, write_weights
from pipeline.cli import run as run_pipeline
from pipeline.config.run_config import RunConfig, read_config
from pipeline.convert import safetensors_store
from pipeline.convert.export import export_run
from pipeline.convert.import_ import import_run
from pipeline.convert.safetensors_store import SafetensorsStore
from pipeline.evaluate.evaluate import load_run
from tests import published
from tests.worlds import question_shards

Edit = Callable[[dict[str, Tensor]], object]


def save(model: PreTrainedModel, folder: Path, *, shard: str = "1GB") -> Path:
    """Save a model in its published form: weights, configurations, both tokenizers."""
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer = build_tokenizer(system("digits").model, weights="random")
    tokenizer.save_pretrained(folder)
    tokenizer.save_pretrained(folder / "qformer_tokenizer")
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 36},
        crop_size={"height": 32, "width": 32},
        resample=2,
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.2, 0.3],
    )
    processor.save_pretrained(folder)
    return folder


def rewrite(folder: Path, edit: Edit) -> None:
    """Change the tensors of a saved model."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return dict(SafetensorsStore.of_folder(folder))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def config_files_of(folder: Path) -> dict[str, bytes]:
    """Return the files next to the weights; the model card is the export's own."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "safetensors" not in path.name and path.name != "README.md"
    }


def hub_names(tensors: dict[str, Tensor]) -> None:
    """Rename a LLaVA's tensors to those of its published file, with an obsolete buffer."""
    for name in [name for name in tensors if name.startswith("vision_tower.")]:
        tensors[name.replace("vision_tower.", "vision_tower.vision_model.")] = tensors.pop(name)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]


def tied_twice(tensors: dict[str, Tensor]) -> None:
    tensors["language_model.encoder.embed_tokens.weight"] = tensors[
        "language_model.shared.weight"
    ].clone()


def nothing(tensors: dict[str, Tensor]) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "dtype", "edit", "left_out"),
    [
        (published.llava, torch.float16, hub_names, "position_ids, which is computed"),
        (lambda: published.blip_2(published.OPT), torch.float32, nothing, ""),
        (
            lambda: published.instructblip(published.T5),
            torch.bfloat16,
            tied_twice,
            "encoder.embed_tokens.weight, a copy of language_model.shared.weight",
        ),
    ],
    ids=["llava", "blip_2", "instructblip"],
)
def test_a_round_trip_is_bit_for_bit(
    make: Callable[[], PreTrainedModel],
    dtype: torch.dtype,
    edit: Edit,
    left_out: str,
    tmp_path: Path,
) -> None:
    source = save(make().to(dtype), tmp_path / "source")
    rewrite(source, edit)
    messages = import_run(source, tmp_path / "run", "sft")
    reported = [line for line in messages if line.startswith("left out")]
    assert len(reported) == bool(left_out)
    assert all(left_out in line for line in reported)
    export_run(tmp_path / "run", tmp_path / "back")
    assert_same(tensors_of(tmp_path / "back"), tensors_of(source))
    assert config_files_of(tmp_path / "back") == config_files_of(source)


def test_an_import_that_was_moved_is_one_line(tmp_path: Path) -> None:
    import_run(save(published.llava(), tmp_path / "source"), tmp_path / "run", "sft")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    expected = rf"{tmp_path}/run/components/\w+': no such folder; was it moved\?"
    with pytest.raises(SpecError, match=expected):
        load_run(read_config(moved / "config.json"), moved)


def test_shards_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_store, "SHARD_BYTES", 60_000)
    model = published.llava()
    source = save(model, tmp_path / "source", shard="50KB")
    import_run(source, tmp_path / "run", "sft")
    assert len(list((tmp_path / "run/components/backbone").glob("*.safetensors"))) > 2
    export_run(tmp_path / "run", tmp_path / "back")
    assert_same(tensors_of(tmp_path / "back"), tensors_of(source))
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "back")
    assert_same(again.state_dict(), model.state_dict())


def test_an_imported_run_has_its_tokenizers_and_the_preset_s_stages(tmp_path: Path) -> None:
    source = save(published.instructblip(published.LLAMA), tmp_path / "source")
    import_run(source, tmp_path / "run", "sft")
    spec = read_config(tmp_path / "run/config.json").system
    preset = system("instructblip")
    assert (spec.pt, spec.sft) == (preset.pt, preset.sft)
    for slot in spec.model.inputs:
        assert isinstance(slot.encoder, EvaClip)
        assert slot.encoder.processor == ImageProcessor(
            size=(32, 32),
            shortest_edge=36,
            resample="bilinear",
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.2, 0.3),
        )
    assert spec.model.backbone.template == preset.model.backbone.template
    for tokenizer in (
        build_tokenizer(spec.model, weights="pretrained"),
        build_text_tokenizer(spec.model, weights="pretrained"),
    ):
        assert tokenizer is not None
        ids = tokenizer("seven", add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == "seven"


LORA = Lora(rank=2, alpha=8, targets=("q_proj",))


def trained_from(imported: Path, folder: Path, adapters: Peft = LORA) -> RunConfig:
    """Write the run folder of a stage with adapters that started from an import."""
    config = read_config(imported / "config.json")
    settings = replace(config.system.sft, precision="fp32", peft=adapters)
    config = replace(
        config,
        system=replace(config.system, sft=settings),
        init_from=str(imported),
        output=str(folder),
    )
    model = build(config.system.model, settings, weights="random")
    torch.manual_seed(3)
    weights = {
        name: torch.randn_like(weight) * 0.2
        for name, weight in model.named_parameters()
        if "lora_" in name or "projector" in name
    }
    write_weights(folder, weights, identity={})
    config.save(folder)
    return config


@torch.no_grad()
@pytest.mark.parametrize(
    ("text", "kind", "adapters"),
    [
        (published.LLAMA, "llama", LORA),
        (published.LLAMA_3, "hf_causal", replace(LORA, use_rslora=True)),
        (published.QWEN_2, "hf_causal", LORA),
        (published.MISTRAL, "hf_causal", replace(LORA, use_dora=True)),
        (published.LLAMA, "llama", QLora(rank=2, alpha=8, targets=("q_proj",))),
    ],
    ids=["llama", "llama-3-rslora", "qwen-2", "mistral-dora", "llama-qlora"],
)
def test_a_trained_run_gives_the_same_logits_in_transformers(
    text: dict[str, object], kind: str, adapters: Peft, tmp_path: Path
) -> None:
    import_run(save(published.llava(text), tmp_path / "source"), tmp_path / "run", "sft")
    tuned = trained_from(tmp_path / "run", tmp_path / "tuned", adapters)
    assert tuned.system.model.backbone.kind == kind
    model = load_run(tuned, tmp_path / "tuned").eval()
    export_run(tmp_path / "tuned", tmp_path / "back")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    image = theirs.config.image_token_id
    ids = torch.tensor([[1, *[image] * 16, 5, 6, 7]])
    pixels = torch.randn(1, 3, 32, 32)
    media = model.project("image", model.encode("image", pixels[:, None]))[0]
    embedded = model.backbone.get_input_embeddings()(ids.where(ids != image, 0))
    embedded[ids == image] = media
    ours = model.backbone(inputs_embeds=embedded).logits
    expected = theirs(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    if isinstance(adapters, QLora):
        return  # all layers of the backbone are as four bits have them
    before = tensors_of(tmp_path / "source")
    after = tensors_of(tmp_path / "back")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert all("q_proj" in name or "projector" in name for name in changed)
    assert len(changed) == 2 + 4


def error_of(source: Path, folder: Path) -> str:
    with pytest.raises((UserError, SpecError)) as caught:
        import_run(source, folder, "sft")
    assert not folder.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_unexpected_tensors_are_errors(tmp_path: Path) -> None:
    source = save(published.llava(), tmp_path / "source")
    norm = "language_model.model.norm.weight"
    weight = load_file(source / "model.safetensors")[norm]
    rewrite(source, lambda tensors: tensors.pop(norm))
    assert "has no tensor for backbone.model.norm.weight" in error_of(source, tmp_path / "run")
    rewrite(source, lambda tensors: tensors.update({norm: weight[1:]}))
    assert f"{norm} is (39,), want (40,) as in its configuration" in error_of(
        source, tmp_path / "run"
    )
    rewrite(source, lambda tensors: tensors.update({norm: weight, "image_newline": weight.clone()}))
    assert "image_newline is unexpected" in error_of(source, tmp_path / "run")
    again = {"model.language_model.norm.weight": weight.clone()}
    rewrite(source, lambda tensors: [tensors.update(again), tensors.pop("image_newline")])
    assert "is the same tensor" in error_of(source, tmp_path / "run")


def test_pictures_that_the_encoder_does_not_take_are_an_error(tmp_path: Path) -> None:
    source = save(published.llava(), tmp_path / "source")
    file = source / "preprocessor_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"crop_size": {"height": 24, "width": 24}}))
    assert (
        "its processor makes pictures of 24 x 24 pixels, but its encoder takes 32 x 32 pixels"
        in (error_of(source, tmp_path / "run"))
    )
    file.write_text(json.dumps(config | {"image_processor_type": "PixtralImageProcessor"}))
    assert "unknown image processor class 'PixtralImageProcessor'" in error_of(
        source, tmp_path / "run"
    )
    file.unlink()
    messages = import_run(source, tmp_path / "run", "sft")
    assert "no preprocessor_config.json: images as in the preset" in messages


def test_an_unsupported_checkpoint_is_an_error(tmp_path: Path) -> None:
    assert "no such file" in error_of(tmp_path / "nowhere", tmp_path / "run")
    source = save(published.llava(multimodal_projector_bias=False), tmp_path / "source")
    assert "multimodal_projector_bias: False, must be True" in error_of(source, tmp_path / "run")
    config = json.loads((source / "config.json").read_text())
    config["multimodal_projector_bias"] = True
    (source / "config.json").write_text(json.dumps(config | {"vision_feature_layer": [-2, -1]}))
    assert "vision_feature_layer: [-2, -1], must be one layer" in error_of(source, tmp_path / "run")
    config["architectures"] = ["FuyuForCausalLM"]
    (source / "config.json").write_text(json.dumps(config))
    assert "a checkpoint of FuyuForCausalLM, want one of Llava" in error_of(
        source, tmp_path / "run"
    )
    (source / "model.safetensors").unlink()
    config["architectures"] = ["LlavaForConditionalGeneration"]
    (source / "config.json").write_text(json.dumps(config))
    assert "has no model.safetensors" in error_of(source, tmp_path / "run")


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(published.llava(), tmp_path / "source")
    data = question_shards(tmp_path / "data", 2)
    run = tmp_path / "run"

    def pipeline(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main(run_pipeline, mistakes=(UserError, SpecError))
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out + printed.err

    code, printed = pipeline("import", "--from", source, "--output", run)
    assert code == 0, printed
    assert "encoder: 55 tensors" in printed
    assert newest_weights(run).parent.name == "step-00000000"
    code, printed = pipeline("import", "--from", source, "--output", run)
    assert (code, "exists already" in printed) == (2, True)
    words = ("--data", data, "--max-new-tokens", 2, "--json")
    code, printed = pipeline("evaluate", "--run", run, *words)
    assert code == 0, printed
    assert (run / "evaluation" / "scores.json").is_file()
    code, printed = pipeline("export", "--run", run, "--output", tmp_path / "back")
    assert code == 0, printed
    assert_same(tensors_of(tmp_path / "back"), tensors_of(source))
