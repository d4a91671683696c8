"""mPLUG-Owl's video encoder: the published code's numbers, dependence on adjacent frames."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model.encoders import clip, temporal_clip
from model.spec import ClipVision, SpecError
from model.spec.image_processor import squash
from model.spec.video import TemporalClip

RECORDED = Path(__file__).parents[1] / "recorded" / "mplug_owl_video.safetensors"
SMALL = TemporalClip(
    tower=ClipVision(
        weights="",
        width=16,
        mlp_width=32,
        layers=2,
        heads=2,
        processor=squash(16),
        patch_size=8,
        feature_layer=-1,
        keep_cls=True,
        norm_eps=1e-6,
    ),
    owl_weights=str(RECORDED),
)


@pytest.fixture(scope="module")
def recorded():
    return load_file(RECORDED)


@pytest.fixture(scope="module")
def published():
    return temporal_clip.build(SMALL, weights="pretrained", dtype=torch.float32).eval()


@torch.no_grad()
def test_features_equal_those_of_the_published_code(recorded, published):
    found = published(recorded["video"])
    assert found.shape == (2, 3, SMALL.tokens, SMALL.width)
    torch.testing.assert_close(found, recorded["features_video"], atol=1e-5, rtol=0)
    picture = published(recorded["video"][:, :1])
    torch.testing.assert_close(picture, recorded["features_picture"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_frames_depend_on_adjacent_ones_per_layer(published):
    frames = torch.randn(1, 5, *SMALL.shape)
    changed = frames.clone()
    changed[:, 4] = 0
    moved = (published(frames) - published(changed)).abs().amax(dim=(0, 2, 3))
    assert (moved[2:] > 1e-4).all()  # two layers reach one frame further each
    assert moved[:2].max() == 0


@torch.no_grad()
def test_a_picture_only_passes_through_the_tower():
    torch.manual_seed(0)
    encoder = temporal_clip.build(SMALL, weights="random", dtype=torch.float32).eval()
    frames = torch.randn(2, 1, *SMALL.shape)
    plain = clip.ClipEncoder(SMALL.tower, encoder.tower)(frames[:, 0])
    torch.testing.assert_close(encoder(frames)[:, 0], encoder.tower.post_layernorm(plain))


def test_every_weight_gets_a_gradient_from_a_video(published):
    published(torch.randn(2, 3, *SMALL.shape)).pow(3).sum().backward()
    assert all(weight.grad is not None for weight in published.parameters())


def test_a_tower_that_does_not_return_its_last_layer_is_refused():
    with pytest.raises(SpecError, match="feature_layer -1 and keep_cls"):
        TemporalClip(tower=replace(SMALL.tower, feature_layer=-2))


def test_a_frame_is_preprocessed_as_for_clip():
    picture = Image.new("RGB", (30, 20), (10, 200, 30))
    assert torch.equal(
        temporal_clip.preprocess(SMALL, picture), clip.preprocess(SMALL.tower, picture)
    )
