"""NFNet: equal to timm's, with the published size."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model.encoders.nfnet import build, preprocess
from model.spec.nfnet import NfNet

RECORDED = Path(__file__).parents[1] / "recorded" / "nfnet.safetensors"


def test_features_equal_timms(tmp_path):
    recorded = load_file(RECORDED)
    pixels, want_bnd = recorded.pop("input"), recorded.pop("output")
    save_file(recorded, tmp_path / "model.safetensors")
    # An odd size covers every rounding of the padding.
    spec = replace(
        NfNet().tiny(),
        weights=str(tmp_path / "model.safetensors"),
        processor=NfNet().processor.at(70),
    )
    encoder = build(spec, weights="pretrained", dtype=torch.float32)
    with torch.no_grad():
        features_bnd = encoder(pixels)
    assert features_bnd.shape == (1, spec.tokens, spec.width)
    torch.testing.assert_close(features_bnd, want_bnd, atol=1e-5, rtol=0)


def test_the_full_size_has_the_published_count():
    spec = NfNet()
    with torch.device("meta"):
        encoder = build(spec, weights="random", dtype=torch.bfloat16)
        assert encoder(torch.empty(1, *spec.shape)).shape == (1, 100, 3072)
    assert (spec.tokens, spec.width) == (100, 3072)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    # timm's dm_nfnet_f6 without its head; Flamingo (table 1) says 435M, the NFNet paper 438.4M with
    # the head of 1000 classes.
    assert count == 435_286_116
    assert abs(count + 1000 * 3073 - 438.4e6) < 0.1e6


def test_random_weights_distinguish_pictures_in_bfloat16():
    torch.manual_seed(0)
    spec = NfNet().tiny()
    encoder = build(spec, weights="random", dtype=torch.bfloat16)
    red, blue = (preprocess(spec, Image.new("RGB", (90, 70), colour)) for colour in ("red", "blue"))
    features_bnd = encoder(torch.cat([red, blue]))
    assert features_bnd.shape == (2, 4, 64)
    assert (features_bnd[0] - features_bnd[1]).abs().max() > 0.1
