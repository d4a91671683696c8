"""EVA-02-CLIP-E as in CogVLM: equal to timm's class, every tensor used."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model.encoders.eva2_clip import build, preprocess
from model.spec import SpecError
from model.spec.image import Eva2Clip
from model.spec.image_processor import squash

RECORDED = Path(__file__).parents[1] / "recorded" / "eva2_clip.safetensors"
SPEC = replace(Eva2Clip().tiny(), processor=squash(16), patch_size=4)


@pytest.fixture(scope="module")
def recorded():
    return load_file(RECORDED)


@pytest.fixture(scope="module")
def weights(recorded, tmp_path_factory):
    file = tmp_path_factory.mktemp("eva2") / "model.safetensors"
    names = recorded.keys() - {"input", "output"}
    save_file({name: recorded[name] for name in names}, file)
    return str(file)


def test_features_equal_timms_before_its_last_layer(recorded, weights):
    encoder = build(replace(SPEC, weights=weights), weights="pretrained", dtype=torch.float32)
    with torch.no_grad():
        features_bnd = encoder(recorded["input"])
    assert features_bnd.shape == (2, SPEC.tokens, SPEC.width)
    torch.testing.assert_close(features_bnd, recorded["output"], atol=1e-5, rtol=0)


def test_positions_for_another_picture_size_are_interpolated(weights):
    spec = replace(SPEC, weights=weights, processor=squash(24))
    encoder = build(spec, weights="pretrained", dtype=torch.float32)
    assert encoder(torch.zeros(1, *spec.shape)).shape == (1, 36, 32)


def test_too_few_layers_are_an_error(weights):
    with pytest.raises(SpecError, match=r"missing \['layers.3"):
        build(replace(SPEC, weights=weights, layers=4), weights="pretrained", dtype=torch.float32)


def test_the_full_size_has_the_published_count():
    spec = Eva2Clip()
    with torch.device("meta"):
        encoder = build(spec, weights="random", dtype=torch.bfloat16)
        assert encoder(torch.empty(1, *spec.shape)).shape == (1, 1225, 1792)
    # timm's eva02_enormous_patch14_clip_224 without its head has 4,348,720,896 in 64 layers; CogVLM
    # reads 63 and no norm behind them. Keys' biases (zero) are parameters here, not there.
    layer = sum(parameter.numel() for parameter in encoder.layers[0].parameters())
    positions = (35**2 - 16**2) * spec.width
    count = sum(parameter.numel() for parameter in encoder.parameters())
    theirs = 4_348_720_896 - (layer - spec.width) - 2 * spec.width
    assert count == theirs + positions + 63 * spec.width
    # The EVA-CLIP paper (Sun et al. 2023, table 1) gives 4.4B for the vision model.
    assert abs(count + layer - 4.4e9) < 0.015 * 4.4e9


def test_a_picture_is_squashed():
    assert preprocess(SPEC, Image.new("RGB", (50, 20))).shape == (1, 3, 16, 16)
