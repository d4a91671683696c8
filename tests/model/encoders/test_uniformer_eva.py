"""VideoChat's encoder: the published code's numbers, one token that attends to all frames."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model.encoders import eva_clip, uniformer_eva
from model.freeze import set_trainable
from model.spec.image import EvaClip
from model.spec.image_processor import squash
from model.spec.video import UniformerEva

RECORDED = Path(__file__).parents[1] / "recorded" / "uniformer_eva.safetensors"
TOWER = EvaClip(width=24, mlp_width=48, layers=3, heads=2, processor=squash(16), patch_size=8)
SMALL = UniformerEva(tower=TOWER, aggregators=2)


@pytest.fixture(scope="module")
def recorded():
    return load_file(RECORDED)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return uniformer_eva.build(SMALL, weights="random", dtype=torch.float32).eval()


@pytest.fixture
def published(recorded, encoder):
    tower = {name: value for name, value in recorded.items() if name.startswith("tower.")}
    encoder.load_state_dict(tower | uniformer_eva.convert_state_dict({"model": recorded}))
    return encoder


@torch.no_grad()
def test_features_equal_those_of_the_published_code(recorded, published):
    frames = recorded["video"]
    found = published(frames)
    assert found.shape == (2, 1, 3 * SMALL.tokens + 1, SMALL.width)
    torch.testing.assert_close(found[:, 0], recorded["output"], atol=2e-5, rtol=0)
    picture = published(frames[:, :1])
    torch.testing.assert_close(picture[:, 0], recorded["output_picture"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_published_aggregators_are_read_from_a_file(recorded, published, tmp_path):
    save_file(
        {name: value for name, value in recorded.items() if "gmhra" in name or "ln_" in name},
        tmp_path / "videochat.safetensors",
    )
    published.tower.save_pretrained(tmp_path / "tower")
    spec = replace(
        SMALL,
        tower=replace(TOWER, weights=str(tmp_path / "tower")),
        aggregator_weights=str(tmp_path / "videochat.safetensors"),
    )
    loaded = uniformer_eva.build(spec, weights="pretrained", dtype=torch.float32).eval()
    torch.testing.assert_close(loaded(recorded["video"]), published(recorded["video"]))


@torch.no_grad()
def test_new_aggregators_do_not_change_the_features_of_frames(encoder):
    frames = torch.randn(2, 3, *SMALL.shape)
    plain = eva_clip.EvaClipEncoder(TOWER, encoder.tower)(frames.flatten(0, 1))
    found = encoder(frames)[:, 0]
    torch.testing.assert_close(found[:, :-1], plain.unflatten(0, (2, 3)).flatten(1, 2))
    assert found[:, -1].abs().max() == 0


@torch.no_grad()
def test_only_the_last_token_depends_on_the_order_of_frames(published):
    frames = torch.randn(1, 3, *SMALL.shape)
    forth, back = published(frames)[0, 0], published(frames.flip(1))[0, 0]
    n = SMALL.tokens
    torch.testing.assert_close(forth[:n], back[2 * n : 3 * n])
    assert (forth[-1] - back[-1]).abs().max() > 1e-3


def test_exactly_the_parameters_that_videochat_trains_get_gradients(published):
    patterns = ("token.*", "aggregators.*", "tower.post_layernorm.*")
    trained = set(set_trainable(published, patterns))
    published(torch.randn(2, 3, *SMALL.shape)).square().sum().backward()
    grads = {name for name, weight in published.named_parameters() if weight.grad is not None}
    assert grads == trained


def test_a_frame_is_preprocessed_as_for_eva_clip():
    picture = Image.new("RGB", (30, 20), (10, 200, 30))
    assert torch.equal(
        uniformer_eva.preprocess(SMALL, picture), eva_clip.preprocess(TOWER, picture)
    )


def test_the_full_size_has_the_published_count():
    """Counted in the published class with its configuration; the paper gives no figure."""
    spec = UniformerEva()
    with torch.device("meta"):
        encoder = uniformer_eva.build(spec, weights="random", dtype=torch.bfloat16)
        assert encoder(torch.empty(1, 8, *spec.shape)).shape == (1, 1, 8 * 257 + 1, 1408)
    counted = sum(weight.numel() for weight in encoder.aggregators.parameters())
    assert counted == 202_339_328
