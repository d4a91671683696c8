"""Vision encoders of transformers' families: their features, pixels, tiny and full."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from model.build import build_input_branch, preprocess
from model.compose.encoders import encoder_from
from model.compose.hf_encoders import vision_from
from model.encoders.hf_vision import build
from model.encoders.pictures import normalise
from model.spec import InputBranchSpec, Mlp, SpecError
from model.spec.decode import decode
from model.spec.hf_encoders import HfVision
from model.weights import assign
from tests.published_encoders import TEXT, VISION, VIT, save_vision, saved

PREFIX = {"clip": 1, "dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 5, "vit": 1, "deit": 2}
PREFIX |= {"beit": 1}


@pytest.fixture(scope="module", params=VISION)
def case(request, tmp_path_factory):
    """Return a family, transformers' model, and our spec of it."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = save_vision(folder, request.param)
    return request.param, getattr(theirs, "vision_model", theirs), vision_from(str(folder))


def pixels_of(spec):
    torch.manual_seed(1)
    return torch.randn(2, *spec.shape)


def inputs(spec, pixels):
    """Return what transformers' class takes: pixels, or SigLIP 2's patches by rows."""
    if spec.model_type != "siglip2_vision_model":
        more = {"interpolate_pos_encoding": True} if "dinov2" not in spec.model_type else {}
        return {"pixel_values": pixels} | (more if more and spec.model_type == "vit" else {})
    rows = [row.split(8, dim=2) for picture in pixels for row in picture.split(8, dim=1)]
    patches = torch.stack([patch.permute(1, 2, 0).flatten() for row in rows for patch in row])
    return {
        "pixel_values": patches.unflatten(0, (len(pixels), 16)),
        "pixel_attention_mask": torch.ones(len(pixels), 16),
        "spatial_shapes": torch.tensor([[4, 4]] * len(pixels)),
    }


def flat(features):
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


@torch.no_grad()
def test_features_equal_those_of_transformers(case):
    family, theirs, spec = case
    pixels = pixels_of(spec)
    expected = theirs(**inputs(spec, pixels), output_hidden_states=True)
    encoder = build(spec, weights="pretrained", dtype=torch.float32)
    assert spec.prefix == PREFIX.get(family, 0)
    whole = flat(expected.last_hidden_state)
    torch.testing.assert_close(encoder(pixels), whole[:, spec.prefix :], atol=1e-5, rtol=1e-5)
    assert encoder(pixels).shape == (2, spec.tokens, spec.width)
    layer = flat(expected.hidden_states[-2])
    if layer.shape == whole.shape:
        other = replace(spec, feature_layer=-2, select="all")
        encoder = build(other, weights="pretrained", dtype=torch.float32)
        torch.testing.assert_close(encoder(pixels), layer, atol=1e-5, rtol=1e-5)
    if spec.prefix:
        encoder.spec = replace(spec, select="cls_patches")
        both = torch.cat([whole[:, :1], whole[:, spec.prefix :]], dim=1)
        torch.testing.assert_close(encoder(pixels), both, atol=1e-5, rtol=1e-5)
        assert both.shape[1] == encoder.spec.tokens
        encoder.spec = replace(spec, select="cls")
        torch.testing.assert_close(encoder(pixels), whole[:, :1], atol=1e-5, rtol=1e-5)


def test_pixels_equal_those_of_the_published_processor(case):
    family, _, spec = case
    name, values = VISION[family][1:]
    draw = np.random.default_rng(0)
    for size in ((50, 50), (37, 61)):
        picture = Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8))
        pixels = preprocess(spec, picture)
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (1, *spec.shape)
        if name == "DINOv3ViT" or (name == "Siglip2" and size[0] != size[1]):
            continue  # transformers' class needs torchvision; keeps the aspect ratio
        processor = getattr(transformers, f"{name}ImageProcessorPil")(**values)
        expected = processor(picture, return_tensors="pt")
        found = inputs(spec, normalise(pixels, spec.processor))
        assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_a_spec_survives_its_file(case):
    _, _, spec = case
    assert decode(HfVision, json.loads(json.dumps(asdict(spec))), "encoder") == spec
    assert hash(spec) == hash(replace(spec))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiny_ones_train_with_a_projector(case, dtype):
    _, _, spec = case
    branch = InputBranchSpec(encoder=spec, projector=Mlp()).tiny()
    assert (branch.encoder.tokens, branch.encoder.model_type) == (4, spec.model_type)
    parts = build_input_branch(branch, 24, "random", dtype)
    pixels = preprocess(branch.encoder, Image.new("RGB", (9, 17), (200, 3, 90)))
    features = parts["encoder"].train()(pixels)
    assert features.dtype == dtype
    tokens = parts["projector"](features[:, None])
    assert tokens.shape == (1, 4, 24)
    tokens.square().mean().backward()
    gradients = {name: w.grad for name, w in parts["encoder"].named_parameters()}
    assert any(g is not None and g.abs().max() > 0 for g in gradients.values())
    again = build_input_branch(branch, 24, "random", dtype)["encoder"]
    assign(again, dict(parts["encoder"].named_parameters()), "memory")
    assert torch.equal(again(pixels), parts["encoder"](pixels))


def test_sharded_and_bin_checkpoints_are_read(tmp_path):
    theirs = save_vision(tmp_path / "shards", "siglip", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    bins = tmp_path / "bin"
    save_vision(bins, "siglip")
    torch.save(theirs.state_dict(), bins / "pytorch_model.bin")
    (bins / "model.safetensors").unlink()
    for folder in (tmp_path / "shards", bins):
        encoder = build(vision_from(str(folder)), weights="pretrained", dtype=torch.float32)
        for name, weight in encoder.tower.named_parameters():
            assert torch.equal(weight, theirs.vision_model.get_parameter(name)), name


def test_clip_has_a_spec_of_its_own(tmp_path):
    save_vision(tmp_path, "clip")
    spec = encoder_from(str(tmp_path), "image")
    assert spec.kind == "clip_vision"
    assert spec.processor.shortest_edge == 36


def error_of(call, *args, **options):
    with pytest.raises(SpecError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_serve_says_why(tmp_path):
    saved(tmp_path, "bert", TEXT)
    assert "'bert' is not an encoder of pictures" in error_of(vision_from, str(tmp_path))
    saved(tmp_path, "vit", VIT)
    assert "has no preprocessor_config.json" in error_of(vision_from, str(tmp_path))
    save_vision(tmp_path, "vit")
    spec = vision_from(str(tmp_path))
    wrong = replace(spec, config=spec.config | {"num_attention_heads": 4})
    message = error_of(build, wrong, weights="pretrained", dtype=torch.float32)
    assert "num_attention_heads is 2, the preset says 4" in message
    other = replace(spec, config=spec.config | {"model_type": "deit"})
    assert "are of 'vit', the preset says 'deit'" in error_of(
        build, other, weights="pretrained", dtype=torch.float32
    )
    assert "has no class token" in error_of(replace, spec, prefix=0, select="cls")
    unknown = replace(spec, config={"model_type": "vit-9"})
    assert "not known to this version" in error_of(
        build, unknown, weights="random", dtype=torch.float32
    )
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "X"}')
    assert "unknown image processor class 'X'" in error_of(vision_from, str(tmp_path))


def test_relative_positions_cannot_be_resized(tmp_path):
    save_vision(tmp_path, "beit")
    spec = vision_from(str(tmp_path))
    larger = replace(
        spec,
        config=spec.config | {"image_size": 64, "use_relative_position_bias": True},
        processor=spec.processor.at(64),
        grid=(8, 8),
    )
    assert "use_relative_position_bias is False" in error_of(
        build, larger, weights="pretrained", dtype=torch.float32
    )
