"""CLIP towers: layers, class token, activation and size."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModel

from model.encoders.clip import build, clip_config, preprocess
from model.encoders.pictures import normalise
from model.spec import SpecError
from model.spec.image import ClipVision
from model.spec.image_processor import pad_to_square, squash

L14 = ClipVision(
    weights="openai/clip-vit-large-patch14",
    width=1024,
    mlp_width=4096,
    layers=24,
    heads=16,
    patch_size=14,
    processor=pad_to_square(224),
)
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
TINY = L14.tiny()


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    tower = CLIPVisionModel(clip_config(TINY)).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tower


@pytest.fixture(scope="module")
def checkpoint(tower, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tower.save_pretrained(folder)
    return str(folder)


def features(spec, pixels):
    encoder = build(spec, weights="pretrained", dtype=torch.float32).eval()
    with torch.no_grad():
        return encoder(pixels)


@pytest.mark.parametrize("layer", [-1, -2, -3])
@pytest.mark.parametrize("keep_cls", [True, False])
def test_features_equal_the_hidden_state_of_the_layer(tower, checkpoint, layer, keep_cls):
    spec = replace(TINY, weights=checkpoint, feature_layer=layer, keep_cls=keep_cls)
    pixels = torch.randn(2, *spec.shape)
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
    want_bnd = states[layer] if keep_cls else states[layer][:, 1:]
    torch.testing.assert_close(features(spec, pixels), want_bnd, atol=1e-6, rtol=0)
    assert want_bnd.shape[1:] == (spec.tokens, spec.width)


@pytest.mark.parametrize("side", [8, 32])
def test_positions_are_interpolated_as_in_transformers(tower, checkpoint, side):
    spec = replace(TINY, weights=checkpoint, processor=squash(side))
    pixels = torch.randn(2, *spec.shape)
    with torch.no_grad():
        output = tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    want_bnd = output.hidden_states[-2][:, 1:]
    torch.testing.assert_close(features(spec, pixels), want_bnd, atol=1e-6, rtol=0)


def test_keep_cls_without_a_class_token_is_refused():
    with pytest.raises(SpecError, match="keep_cls requires attend_cls"):
        replace(BIGG, keep_cls=True)


def test_the_activation_is_that_of_the_spec():
    assert (
        build(TINY, weights="random", dtype=torch.float32).tower.config.hidden_act == "quick_gelu"
    )
    bigg = build(BIGG.tiny(), weights="random", dtype=torch.float32)
    assert bigg.tower.config.hidden_act == "gelu"
    assert bigg(torch.zeros(1, *BIGG.tiny().shape)).shape == (1, 4, 32)


@pytest.mark.parametrize(
    ("spec", "tokens", "millions", "tolerance"),
    [
        # Counts of open_clip's table of models, without the projection (width x space).
        (L14, 256, 303.97 - 1024 * 768 / 1e6, 1e-3),
        (replace(L14, processor=squash(336)), 576, 304.29 - 1024 * 768 / 1e6, 1e-3),
        # Qwen-VL (Bai et al. 2023, table 1): 1.9B; open_clip: 1844.91M.
        (BIGG, 1024, 1844.91 - 1664 * 1280 / 1e6, 2e-3),
    ],
)
def test_the_full_sizes_have_the_published_counts(spec, tokens, millions, tolerance):
    with torch.device("meta"):
        encoder = build(spec, weights="random", dtype=torch.bfloat16)
        assert encoder(torch.empty(1, *spec.shape)).shape == (1, tokens, spec.width)
    assert spec.tokens == tokens
    count = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    assert abs(count - millions) < tolerance * millions


def test_padding_is_the_mean_colour():
    spec = replace(TINY, processor=pad_to_square(48))
    pixels = preprocess(spec, Image.new("RGB", (48, 16), (255, 255, 255)))
    pixels = normalise(pixels, spec.processor)
    assert pixels.shape == (1, 3, 48, 48)
    assert pixels[:, :, :12].abs().max() < 0.025  # a step of 1 / 255, rounded down
    assert pixels[:, :, 20:28].min() > 1.5
