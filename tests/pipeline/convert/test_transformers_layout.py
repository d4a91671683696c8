"""A run in transformers' layout: AutoProcessor and AutoModelForImageTextToText answer as we do."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from etl.cli import UserError
from model import byte_tokenizers
from model.presets import system
from model.spec import Lora, SpecError, System
from model.spec.hf_backbones import HfCausal
from model.spec.hf_encoders import HfVision
from model.spec.image_processor import center_crop, squash
from pipeline.convert.export import export_run
from pipeline.convert.processors import export_template
from pipeline.evaluate.assistant import Assistant
from tests.runs import random_run

QUESTION = "What is on the picture?"
LORA = Lora(rank=2, alpha=8, targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    Image.fromarray(pixels).resize((128, 80)).save(file)
    return file


def answer_of_transformers(folder: Path, picture: Path, model: object = None) -> str:
    """Return the greedy answer of transformers' own classes."""
    processor = AutoProcessor.from_pretrained(folder)
    model = model or AutoModelForImageTextToText.from_pretrained(folder)
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    # BLIP-2's processors leave their template to the tokenizer.
    renderer = processor if processor.chat_template else processor.tokenizer
    text = renderer.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(images=Image.open(picture), text=text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=12)[0]
    prompt = inputs["input_ids"][0]
    if len(ids) > len(prompt) and torch.equal(ids[: len(prompt)], prompt):
        ids = ids[len(prompt) :]
    return processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def composed(model_type: str, *, siglip: bool = False, vocabulary: int | None = None) -> System:
    """Return LLaVA-1.5 with another language model and another encoder, in tiny sizes."""
    base = system("llava_1_5_7b").tiny()
    config = AutoConfig.for_model(model_type, tie_word_embeddings=True)
    template = base.model.backbone.template
    backbone = HfCausal(weights="", config=config.to_dict(), template=template).tiny()
    if vocabulary is not None:
        backbone = replace(backbone, config=backbone.config | {"vocab_size": vocabulary})
    branch = base.model.inputs[0]
    encoder = replace(
        branch.encoder, processor=center_crop(branch.encoder.image_size), keep_cls=True
    )
    if siglip:
        vision = AutoConfig.for_model("siglip_vision_model", image_size=32, patch_size=8)
        encoder = HfVision(
            weights="",
            config=vision.to_dict(),
            width=vision.hidden_size,
            grid=(4, 4),
            processor=squash(32),
            feature_layer=-1,
        ).tiny()
    model = replace(base.model, inputs=(replace(branch, encoder=encoder),), backbone=backbone)
    return replace(base, name=model_type, model=model)


SYSTEMS = (
    ("llava_1_5_7b", "Llava"),
    ("blip_2", "Blip2"),
    ("instructblip", "InstructBlip"),
    (composed("qwen3", siglip=True), "Llava"),
    (composed("gemma2"), "Llava"),
    # The byte tokenizer has no room for <image>: the vocabulary gets one row more.
    (composed("llama", vocabulary=259), "Llava"),
)


@pytest.mark.parametrize(
    ("preset", "family"), SYSTEMS, ids=[getattr(each, "name", each) for each, _ in SYSTEMS]
)
def test_transformers_answers_as_we_do(
    preset: System | str, family: str, picture: Path, tmp_path: Path
) -> None:
    random_run(tmp_path / "run", preset)
    line = export_run(tmp_path / "run", tmp_path / "out", layout="transformers")
    without = " (it takes no video)" if preset == "instructblip" else ""
    assert line.startswith(f"as {family}ForConditionalGeneration{without}: ")
    ours = Assistant.open(tmp_path / "run").ask(QUESTION, image=picture, max_new_tokens=12)
    assert answer_of_transformers(tmp_path / "out", picture) == ours != ""


def test_a_run_without_a_template_is_exported_with_its_plain_prompt(
    picture: Path, tmp_path: Path
) -> None:
    config = random_run(tmp_path / "run", "llava_1_5_7b")
    stage = replace(config.system.sft, prompt="plain")
    replace(config, system=replace(config.system, sft=stage)).save(tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out", layout="transformers")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    parts = [{"type": "image"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert text == "<image>"


@torch.no_grad()
def test_peft_loads_separate_adapters_onto_the_exported_base(picture: Path, tmp_path: Path) -> None:
    random_run(tmp_path / "run", "llava_1_5_7b", peft=LORA)
    export_run(tmp_path / "run", tmp_path / "out", layout="transformers", adapters="separate")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    export_run(tmp_path / "run", tmp_path / "merged", layout="transformers")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([[1, 50, 60, 70]])
    expected = merged(input_ids=ids).logits
    torch.testing.assert_close(adapted(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(input_ids=ids).logits, expected, atol=1e-2)


VLLM_PREFIXES = (
    "language_model.model.",
    "language_model.lm_head.",
    "multi_modal_projector.linear_",
    "vision_tower.vision_model.",
)
"""Modules of vLLM 0.33.0's LlavaForConditionalGeneration (`vllm/model_executor/models/llava.py`,
`clip.py`), into which its loader puts tensors by name; it renames those of transformers' language
model and projector, but not those of its vision tower without `vision_model.`."""


@pytest.mark.parametrize("siglip", [False, True])
def test_the_names_are_those_that_vllm_loads(siglip: bool, tmp_path: Path) -> None:
    random_run(tmp_path / "run", composed("qwen3", siglip=siglip))
    export_run(tmp_path / "run", tmp_path / "out")
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert {next(p for p in VLLM_PREFIXES if name.startswith(p)) for name in names} == {
        *VLLM_PREFIXES[:1],
        *VLLM_PREFIXES[2:],
    }  # the output matrix is tied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    with pytest.raises(UserError, match="a checkpoint of transformers; open it with AutoProcessor"):
        Assistant.open(tmp_path / "out")


def test_a_system_without_a_class_says_why_and_becomes_self_contained(tmp_path: Path) -> None:
    random_run(tmp_path / "run", "minigpt_v2")
    with pytest.raises(SpecError, match="transformers has no class for image: eva_clip"):
        export_run(tmp_path / "run", tmp_path / "out", layout="transformers")
    assert not (tmp_path / "out").exists()
    line = export_run(tmp_path / "run", tmp_path / "out")
    assert line.startswith("self-contained (transformers has no class for image: eva_clip")


def test_a_template_of_texts_renders_messages_of_parts() -> None:
    tokenizer = byte_tokenizers.plain()
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = replace(composed("qwen3").model.backbone, template=None)
    base = composed("qwen3")
    spec = replace(base.model, backbone=model)
    template = export_template(spec, replace(base.sft, prompt="chat"), tokenizer)
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "This"},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
    ]
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    expected = "[user]<image>\nWhat?</s>[assistant]This</s>[user]And?</s>[assistant]"
    assert rendered == expected
