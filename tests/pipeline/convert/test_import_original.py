"""Import of LLaVA in its authors' format, and of peft adapters on top of a base."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModel, LlamaForCausalLM, LlavaForConditionalGeneration

from etl.cli import UserError
from model.build import build_tokenizer
from model.presets import system
from model.spec import Lora, SpecError
from model.spec.image_processor import pad_to_square
from pipeline.config.run_config import read_config
from pipeline.convert.import_ import import_run
from pipeline.evaluate.evaluate import load_run
from tests import published

FIELDS = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "tune_mm_mlp_adapter": False,
}
TARGETS = ("q_proj", "v_proj")


def original_names(model: LlavaForConditionalGeneration, *, tower: bool) -> dict[str, Tensor]:
    """Return a LLaVA's tensors under the names of its authors' code."""
    numbers = {"linear_1": "0", "linear_2": "2"}
    state = {}
    for name, tensor in model.state_dict().items():
        own = name.removeprefix("model.")
        if own.startswith("multi_modal_projector."):
            _, layer, kind = own.split(".")
            state[f"model.mm_projector.{numbers[layer]}.{kind}"] = tensor
        elif own.startswith("language_model."):
            state[f"model.{own.removeprefix('language_model.')}"] = tensor
        elif not own.startswith("vision_tower."):
            state[name] = tensor  # lm_head
        elif tower:
            inner = own.removeprefix("vision_tower.")
            state[f"model.vision_tower.vision_tower.vision_model.{inner}"] = tensor
    return state


def save_original(model: LlavaForConditionalGeneration, folder: Path, **fields: object) -> Path:
    """Write a LLaVA as its authors do: torch files, a CLIP elsewhere, LLaMA's configuration."""
    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    tower.save_pretrained(folder.with_name("clip"))
    folder.mkdir()
    config = model.config.text_config.to_dict()
    config |= FIELDS | {"mm_vision_tower": str(folder.with_name("clip"))} | fields
    (folder / "config.json").write_text(json.dumps(config))
    state = original_names(model, tower="unfreeze_mm_vision_tower" in fields)
    half = len(state) // 2
    parts = [dict(list(state.items())[:half]), dict(list(state.items())[half:])]
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        torch.save(part, folder / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    build_tokenizer(system("digits").model, weights="random").save_pretrained(folder)
    return folder


def state_of(run: Path) -> Mapping[str, Tensor]:
    return load_run(read_config(run / "config.json"), run).state_dict()


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.parametrize("tower", [False, True])
def test_the_weights_are_those_of_transformers_form(tower: bool, tmp_path: Path) -> None:
    model = published.llava()
    model.save_pretrained(tmp_path / "theirs")
    more = {"unfreeze_mm_vision_tower": True} if tower else {}
    source = save_original(model, tmp_path / "original", **more)
    build_tokenizer(system("digits").model, weights="random").save_pretrained(tmp_path / "theirs")
    import_run(tmp_path / "theirs", tmp_path / "expected", "sft")
    lines = import_run(source, tmp_path / "run", "sft")
    assert any(line.startswith("encoder: ") for line in lines) == tower
    plain = {"peft": None}
    for run in ("expected", "run"):
        config = json.loads((tmp_path / run / "config.json").read_text())
        config["system"]["sft"] |= plain | {"precision": "fp32"}
        (tmp_path / run / "config.json").write_text(json.dumps(config))
    assert same(state_of(tmp_path / "run"), state_of(tmp_path / "expected"))
    encoder = read_config(tmp_path / "run/config.json").system.model.inputs[0].encoder
    assert encoder.processor == pad_to_square(32)
    assert (encoder.feature_layer, encoder.keep_cls) == (-2, False)


def test_what_our_components_do_not_support_is_one_line(tmp_path: Path) -> None:
    source = save_original(published.llava(), tmp_path / "original")
    config = json.loads((source / "config.json").read_text())

    def error(**fields: object) -> str:
        (source / "config.json").write_text(json.dumps(config | fields))
        with pytest.raises((SpecError, UserError)) as caught:
            import_run(source, tmp_path / "run", "sft")
        assert not (tmp_path / "run").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "mm_use_im_start_end: True, must be False" in error(mm_use_im_start_end=True)
    assert "mm_projector_type: 'identity', must be" in error(mm_projector_type="identity")
    assert "image_aspect_ratio: 'anyres', must be" in error(image_aspect_ratio="anyres")
    missing = str(tmp_path / "nowhere")
    assert f"{missing!r}: no such folder" in error(mm_vision_tower=missing)
    import_run(source, tmp_path / "run", "sft", vision_tower=str(tmp_path / "clip"))


def adapters(model, folder: Path, prefix: str, **settings: object) -> None:
    """Write random adapters of a model's language model as peft does."""
    layers = [f"{prefix}layers.{n}.self_attn.{target}" for n in (0, 1) for target in TARGETS]
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=layers, **settings)
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    adapted.save_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize("switches", [{}, {"use_rslora": True, "use_dora": True}], ids=str)
def test_peft_adapters_on_a_base_give_peft_s_logits(
    switches: dict[str, bool], tmp_path: Path
) -> None:
    model = published.llava()
    model.save_pretrained(tmp_path / "base")
    build_tokenizer(system("digits").model, weights="random").save_pretrained(tmp_path / "base")
    adapters(model, tmp_path / "adapters", "language_model.", **switches)
    base = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
    import_run(tmp_path / "adapters", tmp_path / "run", "sft", base=tmp_path / "base")
    config = read_config(tmp_path / "run/config.json")
    expected = Lora(rank=2, alpha=6, dropout=0.0, targets=TARGETS, **switches)
    assert config.settings.peft == expected
    text = json.loads((tmp_path / "run/config.json").read_text())
    text["system"]["sft"]["precision"] = "fp32"
    (tmp_path / "run/config.json").write_text(json.dumps(text))
    ours = load_run(read_config(tmp_path / "run/config.json"), tmp_path / "run").eval()
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    logits = ours.backbone(ids).logits
    torch.testing.assert_close(logits, theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits, published.llava()(input_ids=ids).logits, atol=1e-2)


def test_llava_s_own_lora_folder_holds_the_projector(tmp_path: Path) -> None:
    model = published.llava()
    save_original(model, tmp_path / "original")
    llama = LlamaForCausalLM(model.config.text_config)
    llama.load_state_dict(
        {n: t for n, t in original_names(model, tower=False).items() if "mm_projector" not in n}
    )
    llama.save_pretrained(tmp_path / "vicuna")
    build_tokenizer(system("digits").model, weights="random").save_pretrained(tmp_path / "vicuna")
    adapters(llama, tmp_path / "lora", "model.")
    shutil.copy(tmp_path / "original" / "config.json", tmp_path / "lora")
    others = {
        f"base_model.model.{name}": tensor
        for name, tensor in original_names(model, tower=False).items()
        if "mm_projector" in name
    }
    torch.save(others, tmp_path / "lora" / "non_lora_trainables.bin")
    import_run(tmp_path / "lora", tmp_path / "run", "sft", base=tmp_path / "vicuna")
    state = state_of(tmp_path / "run")
    assert sum("lora_" in name for name in state) == 2 * 2 * len(TARGETS)
    projector = "inputs.image.projector.layers.0.weight"
    expected = others["base_model.model.model.mm_projector.0.weight"]
    assert torch.equal(state[projector], expected.to(state[projector].dtype))


def test_adapters_that_cannot_be_expressed_are_one_line(tmp_path: Path) -> None:
    model = published.llava()
    model.save_pretrained(tmp_path / "base")
    build_tokenizer(system("digits").model, weights="random").save_pretrained(tmp_path / "base")
    adapters(model, tmp_path / "adapters", "language_model.")
    file = tmp_path / "adapters" / "adapter_config.json"

    def error(base: Path | None = tmp_path / "base") -> str:
        with pytest.raises((SpecError, UserError)) as caught:
            import_run(tmp_path / "adapters", tmp_path / "run", "sft", base=base)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"bias": "all"}))
    assert "bias 'all', want 'none'" in error()
    file.write_text(json.dumps(config | {"base_model_name_or_path": "some/name"}))
    assert "its base 'some/name' is not a folder here; name one with --base" in error(None)
    weights = {
        "base_model.model.model.vision_tower.encoder.layers.0.x.lora_A.weight": torch.ones(1)
    }
    save_file(weights, tmp_path / "adapters" / "adapter_model.safetensors")
    assert "want layers of the language model alone" in error()
