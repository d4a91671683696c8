"""EVA-CLIP as in BLIP-2: equal to LAVIS's, loaded from whole BLIP-2 checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    OPTConfig,
)

from model.encoders.eva_clip import build, eva_config, preprocess
from model.spec import SpecError
from model.spec.image import EvaClip
from model.spec.image_processor import squash

RECORDED = Path(__file__).parents[1] / "recorded" / "eva_clip.safetensors"
TINY = EvaClip().tiny()


def blip2(spec):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    qformer = Blip2QFormerConfig(
        **small, intermediate_size=32, encoder_hidden_size=32, vocab_size=8
    )
    text = OPTConfig(**small, ffn_dim=32, vocab_size=8, word_embed_proj_dim=32)
    return Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=eva_config(spec).to_dict(),
            qformer_config=qformer.to_dict(),
            text_config=text.to_dict(),
        )
    )


@pytest.fixture(scope="module")
def recorded():
    return load_file(RECORDED)


@pytest.fixture(scope="module")
def checkpoint(recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip2")
    whole = blip2(TINY)
    vision = {name: value for name, value in recorded.items() if name.startswith("vision_model.")}
    assert not whole.load_state_dict(vision, strict=False).unexpected_keys
    whole.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("side", [16, 32])
def test_a_blip2_checkpoint_gives_the_same_features_as_lavis(recorded, checkpoint, side):
    spec = replace(TINY, weights=str(checkpoint), processor=squash(side))
    encoder = build(spec, weights="pretrained", dtype=torch.float32).eval()
    with torch.no_grad():
        features_bnd = encoder(recorded[f"input.{side}"])
    assert features_bnd.shape == (2, spec.tokens, spec.width)
    torch.testing.assert_close(features_bnd, recorded[f"output.{side}"], atol=2e-5, rtol=0)


def test_the_class_token_can_be_dropped(recorded, checkpoint):
    spec = replace(TINY, weights=str(checkpoint), keep_cls=False)
    encoder = build(spec, weights="pretrained", dtype=torch.float32).eval()
    with torch.no_grad():
        features_bnd = encoder(recorded["input.16"])
    assert features_bnd.shape[1] == spec.tokens == 4
    torch.testing.assert_close(features_bnd, recorded["output.16"][:, 1:], atol=2e-5, rtol=0)


def test_weights_of_another_shape_are_refused(checkpoint):
    spec = replace(TINY, weights=str(checkpoint), layers=3)
    with pytest.raises(SpecError, match="num_hidden_layers is 2, the preset says 3"):
        build(spec, weights="pretrained", dtype=torch.float32)


def test_a_checkpoint_without_the_vision_part_is_refused(checkpoint, tmp_path):
    text_only = blip2(TINY).language_model
    text_only.save_pretrained(tmp_path)
    blip2(TINY).config.save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="is missing"):
        build(replace(TINY, weights=str(tmp_path)), weights="pretrained", dtype=torch.float32)


@pytest.mark.parametrize(("side", "tokens"), [(224, 257), (448, 1025)])
def test_the_full_size_has_the_published_count(side, tokens):
    spec = EvaClip(processor=squash(side))
    with torch.device("meta"):
        encoder = build(spec, weights="random", dtype=torch.bfloat16)
        features_bnd = encoder(torch.empty(1, *spec.shape))
    assert features_bnd.shape == (1, tokens, 1408)
    assert spec.tokens == tokens
    # The EVA paper (Fang et al. 2022, table 4) has 1011M with 40 layers; 39 of them are 986M.
    count = sum(parameter.numel() for parameter in encoder.parameters())
    layer = sum(parameter.numel() for parameter in encoder.tower.encoder.layers[0].parameters())
    assert abs(count + layer - 1011e6) < 0.002 * 1011e6
    assert abs(count - 986e6) < 0.002 * 986e6


def test_random_weights_distinguish_pictures():
    torch.manual_seed(0)
    encoder = build(TINY, weights="random", dtype=torch.float32)
    pixels = torch.stack(
        [preprocess(TINY, Image.new("RGB", (20, 30), colour))[0] for colour in ("red", "blue")]
    )
    features_bnd = encoder(pixels)
    assert (features_bnd[0] - features_bnd[1]).abs().max() > 0.1
