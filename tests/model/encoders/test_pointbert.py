"""PointBERT: equal to ULIP's, and clouds of any size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.encoders.pointbert import PointBertEncoder, build, farthest_points, group, preprocess
from model.encoders.pointbert import convert_state_dict as rename
from model.spec.points import PointBert
from tests.model.recorded_weights import recorded

RECORDED = Path(__file__).parents[1] / "recorded" / "pointbert.safetensors"
PUBLISHED = PointBert(weights="OWNER/NAME:FILE")
SMALL = PointBert(
    weights="",
    hidden_width=16,
    mlp_width=64,
    layers=2,
    heads=2,
    points=64,
    channels=6,
    groups=12,
    group_size=8,
    patch_width=16,
    embedding_width=8,
)


def parameters(module):
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("output", ["embedding", "pooled", "tokens"])
def test_features_equal_ulips(output):
    weights, expected = recorded(RECORDED)
    encoder = PointBertEncoder(replace(SMALL, output=output))
    encoder.load_state_dict(rename(encoder.spec, weights))
    with torch.no_grad():
        features = encoder(expected["clouds"])
    assert features.shape[1:] == (encoder.spec.tokens, encoder.spec.width)
    assert torch.allclose(features, expected[output], atol=1e-5, rtol=0)


def test_a_ulip_checkpoint_is_loaded(tmp_path):
    weights, expected = recorded(RECORDED)
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "ulip.pt")
    spec = replace(SMALL, weights=str(tmp_path / "ulip.pt"))
    encoder = build(spec, weights="pretrained", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(encoder(expected["clouds"]), expected["embedding"], atol=1e-5)


def test_the_published_sizes_have_the_published_number_of_parameters():
    coloured = replace(PUBLISHED, points=10_000, channels=6, layers=18, embedding_width=1280)
    with torch.device("meta"):
        plain = build(replace(PUBLISHED, output="pooled"), weights="random", dtype=torch.bfloat16)
        deep = build(replace(coloured, output="pooled"), weights="random", dtype=torch.bfloat16)
    # 22.1M with the classifier of 768, 256 and 40 (ACT, Dong et al. 2023, table 1); the deep one is
    # that of OpenShape (Liu et al. 2023), 32.3M.
    assert parameters(plain) + 768 * 256 + 256 * 40 == pytest.approx(22.1e6, rel=0.01)
    assert parameters(deep) == pytest.approx(32.3e6, rel=0.01)


def test_training_mode_and_the_other_clouds_change_nothing():
    torch.manual_seed(0)
    encoder = build(PUBLISHED.tiny(), weights="random", dtype=torch.float32)
    clouds = torch.randn(3, *encoder.spec.shape)
    with torch.no_grad():
        alone = encoder.eval()(clouds[:1])
        together = encoder.train()(clouds)
    assert torch.allclose(alone, together[:1], atol=1e-6)


def test_half_precision_keeps_the_groups():
    torch.manual_seed(0)
    encoder = build(PUBLISHED.tiny(), weights="random", dtype=torch.bfloat16)
    features = encoder(torch.randn(2, *encoder.spec.shape))
    assert features.dtype == torch.bfloat16
    assert features.shape == (2, encoder.spec.tokens, encoder.spec.width)


def test_farthest_point_sampling_starts_with_the_first_point():
    line = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [9, 0, 0], [4, 0, 0]]])
    assert farthest_points(line, 4).tolist() == [[0, 2, 3, 1]]


def test_groups_are_the_nearest_points_relative_to_their_centre():
    cloud = torch.tensor([[[0.0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [9, 0, 0, 0, 0, 1]]])
    patches, centres = group(cloud, 2, 2)
    assert centres[0, :, 0].tolist() == [0, 9]
    assert sorted(patches[0, 0, :, 0].tolist()) == [0, 1]
    assert sorted(patches[0, 1, :, 0].tolist()) == [-8, 0]
    assert patches[0, 1, 0, 3:].tolist() == [0, 0, 1]


@pytest.mark.parametrize("points", [1, 100, 128, 700])
def test_a_cloud_of_any_size_is_resampled(points):
    cloud = np.random.default_rng(1).random((points, 6), dtype=np.float32) * 40
    for channels in (3, 6):
        spec = replace(PUBLISHED.tiny(), channels=channels)
        prepared = preprocess(spec, cloud)
        assert prepared.shape == (spec.segments, *spec.shape)
        assert prepared[..., :3].norm(dim=-1).max() <= 1 + 1e-6
        assert torch.equal(prepared, preprocess(spec, cloud))


def test_an_array_that_is_no_cloud_is_refused():
    with pytest.raises(ValueError, match=r"shape \(5, 3\), must be \(points, 6\)"):
        preprocess(PUBLISHED, np.zeros((5, 3), np.float32))
