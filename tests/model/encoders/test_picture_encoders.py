"""What every picture encoder must keep, whatever is inside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from model.encoders import clip, docpedia, eva2_clip, eva_clip, monkey, nfnet, vit, vit_22b
from model.spec.high_resolution import DocPedia, Monkey
from model.spec.image import ClipVision, Eva2Clip, EvaClip
from model.spec.nfnet import NfNet
from model.spec.vit import Vit, Vit22B

CLIP = ClipVision(
    weights="", width=1024, mlp_width=4096, layers=24, heads=16, image_size=224, patch_size=14
)
BIGG = replace(CLIP, attend_cls=False, feature_layer=-1, fit="squash")
ENCODERS = [
    (CLIP, clip),
    (BIGG, clip),
    (EvaClip(), eva_clip),
    (Eva2Clip(), eva2_clip),
    (NfNet(), nfnet),
    (Vit(), vit),
    (Vit22B(), vit_22b),
    (Monkey(tower=BIGG), monkey),
    (DocPedia(), docpedia),
]


def encode(encoder, spec, media):
    """One encoder call as the branch makes it: media (m, f, *shape) to features (m, f, n, d)."""
    if spec.encodes_jointly:
        return encoder(media)
    return encoder(media.flatten(0, 1)).unflatten(0, media.shape[:2])


@pytest.mark.parametrize(("spec", "file"), ENCODERS, ids=lambda value: getattr(value, "kind", ""))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_of_any_size_becomes_what_the_spec_says(spec, file, dtype):
    torch.manual_seed(0)
    tiny = spec.tiny()
    assert type(tiny) is type(spec)
    assert tiny.kind == spec.kind
    draw = np.random.default_rng(0)
    pictures = [
        Image.fromarray(draw.integers(0, 256, (high, wide, 3), dtype=np.uint8))
        for high, wide in ((31, 57), (200, 3))
    ]
    media = torch.stack([file.preprocess(tiny, picture) for picture in pictures])
    assert media.shape == (2, tiny.segments, *tiny.shape)
    assert media.dtype == (torch.float32 if file in (monkey, docpedia) else torch.uint8)
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


@pytest.mark.parametrize(("spec", "file"), ENCODERS, ids=lambda value: getattr(value, "kind", ""))
def test_what_is_read_learns(spec, file):
    torch.manual_seed(0)
    tiny = spec.tiny()
    encoder = file.build(tiny, weights="random", dtype=torch.float32)
    media = torch.randn(2, tiny.segments, *tiny.shape)
    encode(encoder, tiny, media).square().sum().backward()
    moved = [name for name, weight in encoder.named_parameters() if weight.grad is not None]
    # Of CLIP's tower the layers behind the one that is read and the last norm, else everything.
    still = {name for name, _ in encoder.named_parameters()} - set(moved)
    assert all(
        name.startswith("tower.encoder.layers.") or "post_layernorm" in name for name in still
    )
    assert len(moved) > len(still)
