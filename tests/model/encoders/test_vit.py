"""The plain vision transformer: transformers' numbers, sizes and weights."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import ViTForImageClassification

from model.encoders.pictures import normalise
from model.encoders.vit import build, preprocess, vit_config
from model.spec.image_processor import squash
from model.spec.vit import Vit

TINY = Vit().tiny()


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    classifier = ViTForImageClassification(vit_config(TINY)).eval()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return classifier


@pytest.mark.parametrize(("side", "keep_cls"), [(16, True), (16, False), (32, False)])
def test_features_of_a_checkpoint_equal_those_of_transformers(classifier, tmp_path, side, keep_cls):
    classifier.save_pretrained(tmp_path)
    spec = replace(TINY, weights=str(tmp_path), processor=squash(side), keep_cls=keep_cls)
    encoder = build(spec, weights="pretrained", dtype=torch.float32).eval()
    pixels = torch.randn(2, *spec.shape)
    with torch.no_grad():
        want_bnd = classifier.vit(pixels, interpolate_pos_encoding=True).last_hidden_state
        features_bnd = encoder(pixels)
    assert features_bnd.shape == (2, spec.tokens, spec.width)
    want_bnd = want_bnd if keep_cls else want_bnd[:, 1:]
    torch.testing.assert_close(features_bnd, want_bnd, atol=1e-5, rtol=0)


def test_the_full_size_has_the_published_count():
    spec = Vit()
    with torch.device("meta"):
        encoder = build(spec, weights="random", dtype=torch.bfloat16)
        assert encoder(torch.empty(1, *spec.shape)).shape == (1, 196, 1024)
    # Dosovitskiy et al. 2021, table 1: 307M, counted with the head of 3072 classes or more.
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert abs(count - 307e6) < 0.015 * 307e6


def test_pixels_are_centred_at_zero():
    pixels = preprocess(TINY, Image.new("RGB", (20, 10), (255, 0, 255)))
    pixels = normalise(pixels, TINY.processor)
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.amin(dim=(0, 2, 3)).tolist() == [1, -1, 1]
