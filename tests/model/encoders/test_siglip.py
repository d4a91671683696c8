"""SigLIP's vision transformer: transformers' numbers, sizes and weights."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import SiglipConfig, SiglipModel

from model.encoders.siglip import build, preprocess, siglip_config
from model.spec import SpecError
from model.spec.image_processor import squash
from model.spec.siglip import Siglip

TINY = Siglip().tiny()


@pytest.fixture(scope="module")
def whole():
    """Return transformers' whole model, with its text model and its pooling head."""
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = SiglipConfig(
        vision_config=siglip_config(TINY).to_dict() | {"vision_use_head": True},
        text_config=text | {"num_attention_heads": 2, "vocab_size": 64},
    )
    return SiglipModel(config).eval()


@pytest.fixture(scope="module")
def checkpoint(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    whole.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def test_features_of_a_checkpoint_equal_those_of_transformers(whole, checkpoint):
    pixels = torch.randn(2, *TINY.shape)
    encoder = build(replace(TINY, weights=checkpoint), weights="pretrained", dtype=torch.float32)
    expected = whole.vision_model(pixels).last_hidden_state
    assert expected.shape == (2, TINY.tokens, TINY.width)
    torch.testing.assert_close(encoder.eval()(pixels), expected)


def test_weights_of_another_size_are_refused(checkpoint):
    spec = replace(TINY, weights=checkpoint)
    with pytest.raises(SpecError, match="num_hidden_layers is 2, the preset says 3"):
        build(replace(spec, layers=3), weights="pretrained", dtype=torch.float32)
    with pytest.raises(SpecError, match="image_size is 16, the preset says 32"):
        build(replace(spec, processor=squash(32)), weights="pretrained", dtype=torch.float32)


def test_the_full_size_has_the_published_shapes():
    with torch.device("meta"):
        encoder = build(Siglip(), weights="random", dtype=torch.float32)
    # SoViT-400m/14 (Alabdulmohsin et al. 2023, table 1): 428M with the pooling head's 15M.
    assert round(sum(weight.numel() for weight in encoder.parameters()) / 1e6) == 413
    assert Siglip().tokens == 729


def test_a_picture_is_squashed():
    pixels = preprocess(TINY, Image.new("RGB", (30, 10), "white"))
    assert pixels.shape == (1, *TINY.shape)
    assert pixels.min() == 255
