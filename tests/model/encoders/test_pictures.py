"""Pictures to pixels: the fast implementations give the numbers of the simple one."""

import numpy as np
import pytest
import torch
from PIL import Image

from model.encoders.clip import build, preprocess
from model.encoders.pictures import normalise, resize_to_square, to_pixels
from model.spec.image import CLIP_MEAN, CLIP_STD, ClipVision

SIZES = [(640, 480), (480, 640), (333, 200), (7, 5), (1, 90), (90, 1), (64, 64), (30, 31), (31, 30)]
TINY = ClipVision(
    weights="", width=1024, mlp_width=4096, layers=24, heads=16, image_size=224, patch_size=14
).tiny()


def noise(width, height):
    draw = np.random.default_rng(width)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("side", [16, 224, 336])
def test_padding_after_resizing_rows_gives_the_same_pixels(size, side):
    picture = noise(*size)
    longer = max(size)
    whole = Image.new("RGB", (longer, longer), tuple(int(255 * value) for value in CLIP_MEAN))
    whole.paste(picture, ((longer - size[0]) // 2, (longer - size[1]) // 2))
    expected = whole.resize((side, side), Image.Resampling.BICUBIC)
    found = resize_to_square(picture, side, fit="pad", mean=CLIP_MEAN)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_pixels_have_the_layout_channels_rows_columns():
    picture = noise(20, 30)
    assert torch.equal(to_pixels(picture), torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def test_bytes_and_floats_are_normalised_once():
    pixels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 4, 256)
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    values = normalise(pixels, mean=CLIP_MEAN, std=CLIP_STD)
    assert torch.equal(values, (pixels / 255 - mean) / std)
    assert normalise(values, mean=CLIP_MEAN, std=CLIP_STD) is values


def test_an_encoder_treats_bytes_like_normalised_pixels():
    torch.manual_seed(0)
    encoder = build(TINY, weights="random", dtype=torch.float32).eval()
    pixels = preprocess(TINY, noise(40, 30))
    values = normalise(pixels, mean=TINY.mean, std=TINY.std)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), encoder(values))
