"""ImageBind: the published implementation's numbers in all six modalities, and any raw medium."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.encoders.imagebind import (
    AUDIO_DEVIATION,
    AUDIO_MEAN,
    ImageBindEncoder,
    build,
    convert_state_dict,
    preprocess,
)
from model.spec.imagebind import imagebind
from tests.model.recorded_weights import recorded

RECORDED = Path(__file__).parents[1] / "recorded" / "imagebind.safetensors"
TRUNKS = ("image", "audio", "depth", "thermal", "imu")
SMALL = {"hidden_width": 16, "layers": 2, "heads": 2, "embedding_width": 8}


def signal(*shape):
    """Return the reference's input: deterministic, so that no file has to store it."""
    place = torch.arange(np.prod(shape), dtype=torch.float64)
    return torch.sin(place * 0.37 + (place * 0.011) ** 2).float().reshape(shape)


def tiny(trunk, **changes):
    return replace(imagebind(trunk, weights="", **changes), **SMALL)


def encode(spec, values):
    encoder = ImageBindEncoder(spec)
    weights, _ = recorded(RECORDED)
    encoder.load_state_dict(convert_state_dict(spec, weights))
    with torch.no_grad():
        return encoder(values)


@pytest.mark.parametrize("modality", ["image", "video", "audio", "depth", "thermal", "imu"])
def test_features_equal_those_of_the_published_code(modality):
    spec = tiny("image" if modality == "video" else modality)
    values = signal(2, *spec.shape)
    if modality == "image":
        values = values[:, :, :1].expand_as(values)
    features = encode(spec, values)
    expected = recorded(RECORDED)[1][modality]
    assert torch.allclose(features[:, 0], expected, atol=1e-5, rtol=0)
    assert torch.allclose(features.norm(dim=-1), torch.tensor(spec.scale))


def test_tokens_are_normalised_and_scaled():
    spec = tiny("audio", output="tokens")
    features = encode(spec, signal(2, *spec.shape))
    assert features.shape == (2, spec.tokens, spec.width)
    assert torch.allclose(features, recorded(RECORDED)[1]["audio_tokens"], atol=1e-5, rtol=0)


def test_an_output_without_normalisation_has_the_same_direction():
    spec = tiny("depth", normalise=False, scale=1.0)
    features = encode(spec, signal(2, *spec.shape))[:, 0]
    expected = recorded(RECORDED)[1]["depth"]
    assert not torch.allclose(features.norm(dim=-1), torch.ones(2), atol=1e-2)
    assert torch.allclose(5 * features / features.norm(dim=-1, keepdim=True), expected, atol=1e-5)


def test_a_published_file_is_loaded_by_each_trunk(tmp_path):
    weights, expected = recorded(RECORDED)
    torch.save(weights, tmp_path / "imagebind.pth")
    for trunk in ("imu", "audio"):
        spec = replace(tiny(trunk), weights=str(tmp_path / "imagebind.pth"))
        encoder = build(spec, weights="pretrained", dtype=torch.float32)
        with torch.no_grad():
            features = encoder(signal(2, *spec.shape))
        assert torch.allclose(features[:, 0], expected[trunk], atol=1e-5)


def test_the_published_sizes_have_the_published_number_of_parameters():
    counts = {}
    for trunk in TRUNKS:
        with torch.device("meta"):
            encoder = build(imagebind(trunk, weights=""), weights="random", dtype=torch.bfloat16)
        counts[trunk] = sum(weight.numel() for weight in encoder.parameters())
    # ViT-H, ViT-B and ViT-S (Dosovitskiy et al. 2021, table 1; Touvron et al. 2021, table 1).
    assert counts["image"] == pytest.approx(632e6, rel=0.01)
    assert counts["audio"] == counts["thermal"] + (228 - 196) * 768
    assert counts["thermal"] == pytest.approx(86e6, rel=0.01)
    assert counts["depth"] == pytest.approx(22e6, rel=0.01)
    # imagebind_huge has 1.2 billion; OpenCLIP ViT-H's text tower is the rest.
    assert sum(counts.values()) + 354e6 == pytest.approx(1.2e9, rel=0.01)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_tiny_trunks_encode_dummies(trunk):
    torch.manual_seed(0)
    for spec in (
        imagebind(trunk, weights="").tiny(),
        imagebind(trunk, weights="", output="tokens").tiny(),
    ):
        encoder = build(spec, weights="random", dtype=torch.bfloat16)
        features = encoder(torch.zeros(3, *spec.shape))
        assert features.shape == (3, spec.tokens, spec.width)
        assert features.isfinite().all()


def test_pictures_are_cropped_to_the_middle_square():
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    spec = imagebind("image", weights="")
    prepared = preprocess(spec, picture)
    assert prepared.shape == (1, *spec.shape)
    assert torch.equal(prepared[0, :, 0], prepared[0, :, 1])
    blue = (torch.tensor([0.0, 0, 1]) - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / (
        torch.tensor([0.26862954, 0.26130258, 0.27577711])
    )
    assert torch.allclose(prepared[0, :, 0, 100, 100], blue, atol=1e-5)


def test_frames_of_a_video_are_paired_with_the_following_one():
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 100, 200)]
    prepared = preprocess(imagebind("image", weights="").tiny(), frames)
    assert prepared.shape == (3, 3, 2, 28, 28)
    red = prepared[:, 0, :, 0, 0]
    assert torch.equal(red[:-1, 1], red[1:, 0])
    assert red[2, 0] == red[2, 1]


@pytest.mark.parametrize("seconds", [0, 0.5, 2, 7])
def test_clips_of_audio_are_spread_over_any_length(seconds):
    spec = imagebind("audio", weights="", clips=3)
    waveform = np.random.default_rng(0).normal(0.1, 0.1, int(seconds * 16_000)).astype(np.float32)
    clips = preprocess(spec, waveform)
    assert clips.shape == (3, *spec.shape)
    blank = (0 - AUDIO_MEAN) / AUDIO_DEVIATION
    assert torch.allclose(clips[..., 198:], torch.tensor(blank))
    assert torch.equal(clips[0], clips[2]) == (seconds <= 2)
    alone = preprocess(replace(spec, clips=1), waveform[-32_000:])
    assert torch.allclose(clips[2], alone[0], atol=1e-5)


def test_grey_pictures_and_motion_have_the_shape_of_the_spec():
    depth = imagebind("depth", weights="")
    prepared = preprocess(depth, Image.new("RGB", (500, 400), (51, 51, 51)))
    assert torch.allclose(prepared, torch.full((1, *depth.shape), 0.2))
    motion = imagebind("imu", weights="")
    short = preprocess(motion, np.ones((6, 1500), np.float32))
    assert short.shape == (1, *motion.shape)
    assert short.sum() == 6 * 1500


def test_another_kind_of_medium_is_refused():
    with pytest.raises(ValueError, match="imu trunk cannot encode a ndarray"):
        preprocess(imagebind("imu", weights=""), np.ones((3, 2000), np.float32))
    with pytest.raises(ValueError, match="audio trunk cannot encode a Image"):
        preprocess(imagebind("audio", weights=""), Image.new("RGB", (8, 8)))
