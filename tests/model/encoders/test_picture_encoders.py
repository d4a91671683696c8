"""What every picture encoder must do, whatever its architecture; finds new ones by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from model.build import ENCODERS
from model.presets.blocks import vit_bigg_448
from model.spec.high_resolution import DocPedia, Monkey
from model.spec.imagebind import ImageBind
from tests.model.examples import encoder_specs

NORMALISED = (Monkey, DocPedia)
"""Encoders whose `preprocess` returns floats; pixels of all others stay bytes."""


def is_picture_encoder(spec):
    """Encoders that attend across frames, and ImageBind, have tests of their own."""
    across_frames = "video" in spec.media and spec.encodes_jointly
    return "image" in spec.media and not across_frames and not isinstance(spec, ImageBind)


SPECS = [spec for spec in encoder_specs().values() if is_picture_encoder(spec)]
SPECS.append(replace(vit_bigg_448(), weights=""))  # CLIP without a class token
EVERY = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)


def encode(encoder, spec, media):
    """Call an encoder as its branch does: media (m, f, *shape) to features (m, f, n, d)."""
    if spec.encodes_jointly:
        return encoder(media)
    return encoder(media.flatten(0, 1)).unflatten(0, media.shape[:2])


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_of_a_picture_of_any_size_have_the_shape_of_the_spec(spec, dtype):
    torch.manual_seed(0)
    tiny, file = spec.tiny(), ENCODERS[type(spec)]
    assert type(tiny) is type(spec)
    assert tiny.kind == spec.kind
    draw = np.random.default_rng(0)
    pictures = [
        Image.fromarray(draw.integers(0, 256, (high, wide, 3), dtype=np.uint8))
        for high, wide in ((31, 57), (200, 3))
    ]
    media = torch.stack([file.preprocess(tiny, picture) for picture in pictures])
    assert media.shape == (2, tiny.segments, *tiny.shape)
    assert media.dtype == (torch.float32 if isinstance(spec, NORMALISED) else torch.uint8)
    encoder = file.build(tiny, weights="random", dtype=dtype).eval()
    with torch.no_grad():
        features_mfnd = encode(encoder, tiny, media)
        alone = encode(encoder, tiny, media[1:])
    assert features_mfnd.shape == (2, tiny.segments, tiny.tokens, tiny.width)
    assert features_mfnd.dtype == dtype
    assert features_mfnd.isfinite().all()
    close = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.1}
    torch.testing.assert_close(features_mfnd[1:], alone, **close)
    assert (features_mfnd[0] - features_mfnd[1]).abs().max() > 0.01


@EVERY
def test_every_weight_that_is_used_gets_a_gradient(spec):
    torch.manual_seed(0)
    tiny, file = spec.tiny(), ENCODERS[type(spec)]
    encoder = file.build(tiny, weights="random", dtype=torch.float32)
    media = torch.randn(2, tiny.segments, *tiny.shape)
    encode(encoder, tiny, media).square().sum().backward()
    used = [name for name, weight in encoder.named_parameters() if weight.grad is not None]
    # Not used are only CLIP's layers after the one that is returned, and its last norm; and a token
    # for patches that are masked in pre-training.
    unused = {name for name, _ in encoder.named_parameters()} - set(used)
    assert all(
        name.startswith("tower.encoder.layers.") or "post_layernorm" in name or "mask_token" in name
        for name in unused
    )
    assert len(used) > len(unused)
