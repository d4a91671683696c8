"""Monkey's tiles: the published code's numbers, adapters that know their tile."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model.encoders import clip, monkey
from model.encoders.pictures import normalise
from model.spec import SpecError
from model.spec.high_resolution import Monkey
from model.spec.image import ClipVision
from model.spec.image_processor import pad_to_square, squash

RECORDED = Path(__file__).parents[1] / "recorded" / "monkey.safetensors"
BIGG = ClipVision(
    weights="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    width=1664,
    mlp_width=8192,
    layers=48,
    heads=16,
    patch_size=14,
    feature_layer=-1,
    attend_cls=False,
    hidden_act="gelu",
    norm_eps=1e-6,
    processor=squash(448),
)
SMALL = Monkey(
    tower=replace(
        BIGG, width=16, mlp_width=32, layers=2, heads=2, processor=squash(16), patch_size=4
    )
)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return monkey.build(SMALL, weights="random", dtype=torch.float32).eval()


def test_tiles_and_features_equal_those_of_the_published_code(encoder):
    recorded = load_file(RECORDED)
    encoder.load_state_dict(monkey.convert_state_dict(SMALL, recorded))
    picture_13hw = recorded["input"]
    # The picture's pixels are normal numbers here, so `preprocess` is followed by hand: rows first.
    tiles = [
        picture_13hw[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        for row in range(2)
        for column in range(3)
    ]
    whole = torch.nn.functional.interpolate(picture_13hw, size=(16, 16), mode="bicubic")
    with torch.no_grad():
        features_bfnd = encoder(torch.stack([*tiles, whole], dim=1))
    assert features_bfnd.shape == (1, SMALL.segments, SMALL.tokens, SMALL.width)
    torch.testing.assert_close(features_bfnd, recorded["output"], atol=1e-5, rtol=0)


def test_new_adapters_are_zero(encoder):
    plain = clip.ClipEncoder(SMALL.tower, encoder.tower).eval()
    pixels = torch.randn(2, SMALL.segments, *SMALL.shape)
    with torch.no_grad():
        want = plain(pixels.flatten(0, 1)).unflatten(0, (2, SMALL.segments))
        torch.testing.assert_close(encoder(pixels), want, atol=1e-6, rtol=0)


def test_an_adapter_affects_its_own_tile_only(encoder):
    pixels = torch.randn(1, SMALL.segments, *SMALL.shape)
    with torch.no_grad():
        before = encoder(pixels)
        encoder.adapters[0].qkv.up_wer[2] = 1.0
        moved = (encoder(pixels) - before).abs().amax(dim=(0, 2, 3))
    assert moved[2] > 1e-3
    assert moved[[0, 1, 3, 4, 5, 6]].max() == 0


def test_a_picture_becomes_rows_of_tiles_and_the_whole_picture():
    draw = np.random.default_rng(0)
    values = draw.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    pixels = monkey.preprocess(SMALL, Image.fromarray(values))
    assert pixels.shape == (SMALL.segments, *SMALL.shape)
    squashed = clip.preprocess(SMALL.tower, Image.fromarray(values[16:, 16:32]))
    colours = SMALL.tower
    squashed = normalise(squashed, colours.processor)
    torch.testing.assert_close(pixels[4], squashed[0])
    flat = monkey.preprocess(SMALL, Image.new("RGB", (90, 10), (10, 200, 30)))
    torch.testing.assert_close(flat, flat[:1].expand_as(flat))


def test_the_full_size_has_the_published_count():
    spec = Monkey(tower=BIGG)
    with torch.device("meta"):
        encoder = monkey.build(spec, weights="random", dtype=torch.bfloat16)
        assert encoder(torch.empty(1, 7, *spec.shape)).shape == (1, 7, 1024, 1664)
    # Counted in the published class with six tiles; the paper says 117M, which its code (four
    # tiles: 51.1M) does not give either.
    assert sum(parameter.numel() for parameter in encoder.adapters.parameters()) == 76_677_984
    # Theirs with 256 positions and no class token: 1,842,770,688.
    unread = 3 * 1664
    count = sum(parameter.numel() for parameter in encoder.tower.parameters())
    assert count - unread - (1025 - 256) * 1664 == 1_842_770_688


def test_padding_is_refused():
    with pytest.raises(SpecError, match="pads or crops, must only resize"):
        Monkey(tower=replace(BIGG, processor=pad_to_square(448)))


def test_tiny_keeps_the_wiring():
    spec = SMALL.tiny()
    encoder = monkey.build(spec, weights="random", dtype=torch.float32)
    features_bfnd = encoder(torch.zeros(1, spec.segments, *spec.shape))
    assert features_bfnd.shape == (1, 7, spec.tokens, spec.width)
