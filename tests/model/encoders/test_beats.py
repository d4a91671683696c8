"""BEATs: the published implementation's numbers, and waveforms of any length."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.encoders.beats import (
    DEVIATION,
    MEAN,
    BeatsEncoder,
    build,
    convert_state_dict,
    distance_buckets,
    preprocess,
)
from model.encoders.fbank import fbank
from model.spec.audio import Beats
from tests.model.recorded_weights import recorded

RECORDED = Path(__file__).parents[1] / "recorded" / "beats.safetensors"
PUBLISHED = Beats(weights="OWNER/NAME:FILE")
SMALL = Beats(
    weights="",
    width=32,
    mlp_width=48,
    layers=2,
    heads=2,
    frames=64,
    patch_width=24,
    position_kernel=16,
)


def test_features_equal_those_of_the_published_code():
    weights, expected = recorded(RECORDED)
    encoder = BeatsEncoder(SMALL)
    encoder.load_state_dict(convert_state_dict(weights))
    with torch.no_grad():
        tokens = encoder(expected["features"].float())
    assert tokens.shape == (2, SMALL.tokens, SMALL.width)
    assert torch.allclose(tokens, expected["tokens"], atol=1e-5, rtol=0)


def test_a_published_file_is_loaded_with_its_configuration_and_classifier_left_out(tmp_path):
    weights, expected = recorded(RECORDED)
    content = weights | {"predictor.weight": torch.zeros(527, 32), "predictor.bias": torch.zeros(1)}
    torch.save({"cfg": {"encoder_layers": 2}, "model": content}, tmp_path / "beats.pt")
    spec = Beats(**{**vars(SMALL), "weights": str(tmp_path / "beats.pt")})
    encoder = build(spec, weights="pretrained", dtype=torch.float32)
    with torch.no_grad():
        tokens = encoder(expected["features"].float())
    assert torch.allclose(tokens, expected["tokens"], atol=1e-5)


def test_the_published_size_has_ninety_million_parameters():
    with torch.device("meta"):
        encoder = build(PUBLISHED, weights="random", dtype=torch.bfloat16)
    # Chen et al. 2022, table 1; without the 128 separate lengths of weight normalisation.
    assert sum(weight.numel() for weight in encoder.parameters()) == 90_311_792 - 128
    assert PUBLISHED.tokens == 256
    assert PUBLISHED.seconds == pytest.approx(10.24)


def test_small_distances_have_a_bucket_each_and_large_ones_share():
    buckets = distance_buckets(1000, torch.device("cpu"))
    assert buckets[0, :80].tolist() == [0, *range(161, 240)]
    assert buckets[79, :80].tolist() == list(range(79, -1, -1))
    assert buckets[0, 800:].unique().tolist() == [319]
    assert buckets[:, 0].diff().min() == 0
    assert buckets.unique().numel() == 319


def test_half_precision_is_finite():
    torch.manual_seed(0)
    encoder = build(PUBLISHED.tiny(), weights="random", dtype=torch.bfloat16)
    spec = PUBLISHED.tiny()
    tokens = encoder(torch.randn(3, *spec.shape))
    assert tokens.dtype == torch.bfloat16
    assert tokens.shape == (3, spec.tokens, spec.width)
    assert tokens.isfinite().all()


@pytest.mark.parametrize("samples", [0, 100, 8_000, 16_000 * 12])
def test_a_waveform_of_any_length_becomes_the_specs_clips(samples):
    waveform = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    clips = preprocess(PUBLISHED, waveform)
    assert clips.shape == (PUBLISHED.clips, *PUBLISHED.shape)
    assert clips.isfinite().all()


def test_clips_are_consecutive_and_padded_with_zeros():
    waveform = np.random.default_rng(0).normal(0, 0.1, 16_000 * 7).astype(np.float32)
    whole = fbank(torch.from_numpy(waveform) * 2**15, 16_000, 128, "povey")
    clips = preprocess(PUBLISHED, waveform).flatten(0, 1)
    assert torch.allclose(clips[: len(whole)], (whole - MEAN) / (2 * DEVIATION))
    assert not clips[len(whole) :].any()
