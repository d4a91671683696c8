"""A run in transformers' layout: AutoProcessor and AutoModelForImageTextToText answer as we do."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from model.compose.backbones import published_fields
from model.presets import system
from model.spec import Lora, Mlp, SpecError, System
from model.spec.hf_backbones import HfCausal
from model.spec.image_processor import center_crop
from pipeline.convert.export import export_run
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


def composed(model_type: str, **fields: object) -> System:
    """Return LLaVA-1.5 with another language model, in tiny sizes."""
    base = system("llava_1_5_7b").tiny()
    config = AutoConfig.for_model(model_type, tie_word_embeddings=True, **fields)
    backbone = HfCausal(
        weights="", config=config.to_dict(), template=base.model.backbone.template
    ).tiny()
    branch = base.model.inputs[0]
    encoder = replace(branch.encoder, processor=center_crop(branch.encoder.image_size), keep_cls=True)
    model = replace(base.model, inputs=(replace(branch, encoder=encoder),), backbone=backbone)
    return replace(base, name=model_type, model=model)


SYSTEMS = {
    "llava_1_5_7b": "LlavaForConditionalGeneration",
    "blip_2": "Blip2ForConditionalGeneration",
    "blip_2_flan_t5_xxl": "Blip2ForConditionalGeneration",
    composed("qwen3"): "LlavaForConditionalGeneration",
    composed("gemma2"): "LlavaForConditionalGeneration",
}


@pytest.mark.parametrize(
    ("preset", "architecture"), SYSTEMS.items(), ids=lambda each: getattr(each, "name", each)
)
def test_transformers_answers_as_we_do(
    preset: System | str, architecture: str, picture: Path, tmp_path: Path
) -> None:
    random_run(tmp_path / "run", preset)
    line = export_run(tmp_path / "run", tmp_path / "out", layout="transformers")
    assert line.startswith(f"as {architecture}: ")
    ours = Assistant.open(tmp_path / "run").ask(QUESTION, image=picture, max_new_tokens=12)
    assert answer_of_transformers(tmp_path / "out", picture) == ours
