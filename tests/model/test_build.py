"""Building: the same numbers as transformers' LLaVA; weights that fit or are refused."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration

from model.backbones.llama import llama_config
from model.build import build, build_on_meta, build_tokenizer, preprocess
from model.encoders.clip import clip_config
from model.encoders.pictures import normalise
from model.spec import SpecError
from tests.model.conftest import IMAGE_ID


def reference(spec):
    """Return transformers' own LLaVA of the same sizes."""
    branch = spec.inputs[0]
    config = LlavaConfig(
        vision_config=clip_config(branch.encoder),
        text_config=llama_config(spec.backbone),
        image_token_index=IMAGE_ID,
        vision_feature_layer=branch.encoder.feature_layer,
        vision_feature_select_strategy="full" if branch.encoder.keep_cls else "default",
        tie_word_embeddings=spec.backbone.tied_embeddings,
    )
    return LlavaForConditionalGeneration(config).eval()


def copy_across(model, other):
    """Copy all our weights to the other implementation."""
    renamed = {
        "model.vision_tower.": model.encoder("image").tower.state_dict(),
        "model.language_model.": model.backbone.model.state_dict(),
        "lm_head.": model.backbone.lm_head.state_dict(),
        "model.multi_modal_projector.": {
            f"linear_{number}.{kind}": getattr(model.projector("image").layers[place], kind)
            for number, place in ((1, 0), (2, 2))
            for kind in ("weight", "bias")
        },
    }
    weights = {prefix + name: w for prefix, part in renamed.items() for name, w in part.items()}
    other.load_state_dict(weights, strict=True)


@pytest.mark.parametrize(
    ("encoder", "backbone"),
    [
        ({}, {}),
        ({"feature_layer": -2}, {"tied_embeddings": False}),
        ({"feature_layer": -3}, {"kv_heads": 2, "rope_theta": 500_000.0}),
    ],
    ids=["digits", "as LLaVA-1.5", "grouped queries"],
)
def test_logits_equal_transformers_llava(digits, make_batch, encoder, backbone):
    branch = digits.model.inputs[0]
    spec = replace(
        digits.model,
        inputs=(replace(branch, encoder=replace(branch.encoder, **encoder)),),
        backbone=replace(digits.model.backbone, **backbone),
    )
    model = build(spec, digits.pt, weights="random", seed=3).eval()
    torch.manual_seed(4)
    for weight in model.parameters():  # initial values could hide errors
        weight.data.normal_(mean=float(weight.ndim < 2), std=0.1)
    other = reference(spec)
    copy_across(model, other)
    batch = make_batch([60, 52])
    colours = branch.encoder
    pixels = normalise(batch.media["image"].input_values[:, 0], colours.processor)
    with torch.no_grad():
        ours, targets, *_ = model(batch)
        theirs = other(
            input_ids=batch.ids_bt,
            attention_mask=batch.attention_bt,
            pixel_values=pixels,
        ).logits[:, :-1][batch.labels_bt[:, 1:] != -100]
    assert targets.numel() == ours.shape[0] > 0
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_shapes(model, digits, make_batch):
    batch = make_batch([50, 50])
    values = batch.media["image"].input_values
    with torch.no_grad():
        assert model.encoder("image")(values[:, 0]).shape == (2, 36, 128)
        assert model.project("image", model.encode("image", values)).shape == (2, 36, 128)
        logits, targets, *_ = model(batch)
    text = int((batch.labels_bt[:, 1:] != -100).sum())
    assert logits.shape == (text, digits.model.backbone.vocabulary)
    assert targets.shape == (text,)


def test_lora_starts_as_identity(digits, make_batch):
    plain = build(digits.model, digits.pt, weights="random", seed=0).eval()
    adapted = build(digits.model, digits.sft, weights="random", seed=0).eval()
    stored = plain.state_dict()
    for name, weight in adapted.state_dict().items():
        if "lora_" not in name:
            weight.copy_(stored[name.replace("base_layer.", "")])
    batch = make_batch([50])
    with torch.no_grad():
        torch.testing.assert_close(adapted(batch)[0], plain(batch)[0], atol=1e-6, rtol=1e-6)


def test_new_weights_depend_on_the_seed_alone(digits):
    torch.manual_seed(123)
    first = build(digits.model, digits.sft, weights="random", seed=7).state_dict()
    torch.manual_seed(456)
    again = build(digits.model, digits.sft, weights="random", seed=7).state_dict()
    other = build(digits.model, digits.sft, weights="random", seed=8).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    name = "inputs.image.projector.layers.0.weight"
    assert not torch.equal(first[name], other[name])


def test_the_meta_device_holds_no_weights(digits):
    model = build_on_meta(digits.model, digits.sft)
    assert all(weight.is_meta for weight in model.parameters())


def test_weights_have_the_stages_precision(digits):
    stage = replace(digits.pt, precision="bf16")
    model = build(digits.model, stage, weights="random")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_weights_are_loaded_unchanged_from_a_folder(digits, tmp_path):
    source = build(digits.model, digits.pt, weights="random", seed=5)
    source.encoder("image").tower.save_pretrained(tmp_path / "vision")
    source.backbone.save_pretrained(tmp_path / "language")
    branch = digits.model.inputs[0]
    spec = replace(
        digits.model,
        inputs=(
            replace(branch, encoder=replace(branch.encoder, weights=str(tmp_path / "vision"))),
        ),
        backbone=replace(digits.model.backbone, weights=str(tmp_path / "language")),
    )
    loaded = build(spec, digits.pt, weights="pretrained", seed=6).state_dict()
    for name, weight in source.state_dict().items():
        if "projector" not in name:
            assert torch.equal(loaded[name], weight), name


def test_weights_of_another_shape_are_refused(digits, tmp_path):
    build(digits.model, digits.pt, weights="random").backbone.save_pretrained(tmp_path)
    backbone = replace(digits.model.backbone, weights=str(tmp_path), layers=6)
    spec = replace(digits.model, inputs=(), backbone=backbone)
    with pytest.raises(SpecError, match="num_hidden_layers is 4, the preset says 6"):
        build(spec, digits.pt, weights="pretrained")


def test_missing_weights_are_a_one_line_error(digits, tmp_path):
    backbone = replace(digits.model.backbone, weights=str(tmp_path / "nowhere"))
    spec = replace(digits.model, inputs=(), backbone=backbone)
    with pytest.raises(SpecError, match="nowhere") as error:
        build(spec, digits.pt, weights="pretrained")
    assert "\n" not in str(error.value)
    assert "--weights random" in str(error.value)


def test_the_byte_tokenizer_is_reversible_and_parses_no_special_tokens(digits):
    tokenizer = build_tokenizer(digits.model, weights="random")
    text = "Größe 7, </s> and <pad>\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids
    assert len(tokenizer) <= digits.model.backbone.vocabulary


def test_preprocessing_makes_square_normalised_pixels(digits):
    encoder = digits.model.inputs[0].encoder
    pixels = preprocess(encoder, Image.new("RGB", (10, 20), "white"))
    assert pixels.dtype == torch.uint8
    pixels = normalise(pixels, encoder.processor)
    assert pixels.shape == (1, 3, encoder.image_size, encoder.image_size)
    torch.testing.assert_close(pixels, torch.ones_like(pixels))
