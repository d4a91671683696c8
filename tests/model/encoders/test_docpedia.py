"""DocPedia's encoder: scipy's cosine transform, the published shapes and counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from transformers import SwinConfig, SwinForImageClassification

from model.encoders.docpedia import build, preprocess, swin_config
from model.spec import SpecError
from model.spec.high_resolution import DocPedia

TINY = DocPedia().tiny()


def test_coefficients_equal_scipys():
    draw = np.random.default_rng(0)
    side = TINY.image_size
    picture = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
    coefficients_1cgg = preprocess(TINY, picture)
    assert coefficients_1cgg.shape == (1, *TINY.shape)
    assert coefficients_1cgg.dtype == torch.float32
    values = (np.asarray(picture.convert("YCbCr"), dtype=np.float64) - 128) / 128
    for row, column, colour in ((0, 0, 0), (3, 5, 1), (15, 2, 2)):
        block = values[8 * row : 8 * row + 8, 8 * column : 8 * column + 8, colour]
        want = dctn(block, norm="ortho").flatten() / 8
        got = coefficients_1cgg[0, 64 * colour : 64 * colour + 64, row, column]
        np.testing.assert_allclose(got.numpy(), want, atol=1e-6)


def test_a_uniform_picture_has_one_coefficient_per_plane():
    coefficients = preprocess(TINY, Image.new("RGB", (30, 50), (255, 255, 255)))[0]
    assert coefficients[0].min() == coefficients[0].max() == pytest.approx(127 / 128)
    assert coefficients[1:].abs().max() < 1e-6


def checkpoint(folder, **options):
    sizes = swin_config(TINY).to_dict() | {"num_channels": 3, "patch_size": 4, "image_size": 64}
    torch.manual_seed(0)
    classifier = SwinForImageClassification(SwinConfig(**sizes | options))
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.normal_()
    classifier.save_pretrained(folder)
    return classifier.swin.state_dict()


def test_weights_for_pixels_are_loaded_except_for_the_adapter(tmp_path):
    state = checkpoint(tmp_path)
    spec = replace(TINY, weights=str(tmp_path))
    tower = build(spec, weights="pretrained", dtype=torch.float32).tower
    own = tower.state_dict()
    differ = {name for name, value in state.items() if not torch.equal(own[name], value)}
    assert differ == {"embeddings.patch_embeddings.projection.weight"}


def test_weights_of_another_shape_are_refused(tmp_path):
    checkpoint(tmp_path, embed_dim=16)
    with pytest.raises(SpecError, match="missing or does not fit"):
        build(replace(TINY, weights=str(tmp_path)), weights="pretrained", dtype=torch.float32)


def test_features_depend_on_their_own_region():
    torch.manual_seed(0)
    encoder = build(TINY, weights="random", dtype=torch.float32).eval()
    coefficients = torch.randn(1, *TINY.shape).repeat(2, 1, 1, 1)
    coefficients[1, :, :8, 8:] = torch.randn(TINY.shape[0], 8, 8)
    with torch.no_grad():
        features_bnd = encoder(coefficients)
    assert features_bnd.shape == (2, TINY.tokens, TINY.width)
    moved_n = (features_bnd[1] - features_bnd[0]).abs().amax(dim=1)
    assert moved_n.argmax() == 1


def test_the_full_size_has_the_published_shapes_and_count():
    spec = DocPedia()
    with torch.device("meta"):
        encoder = build(spec, weights="random", dtype=torch.bfloat16)
        assert encoder(torch.empty(1, *spec.shape)).shape == (1, 1600, 1024)
    assert (spec.tokens, spec.width) == (1600, 1024)
    # Swin-B (Liu et al. 2021, table 1): 88M, with a layer for pixels and a head of 1000 classes.
    count = sum(parameter.numel() for parameter in encoder.parameters())
    theirs = count - 192 * 128 + 48 * 128 + 1025 * 1000
    assert abs(theirs - 88e6) < 0.005 * 88e6
