"""Trained weights: stored ones are loaded, and those that do not fit are an error."""

import pytest
import torch
from safetensors.torch import save_file

from model.positions import resize_positions
from model.spec import SpecError
from model.weights import assign, load_trained

NAME = "inputs.image.projector.layers.0.weight"


def snapshot(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_stored_weights_replace_only_parameters_of_the_same_name(model, tmp_path):
    before = snapshot(model)
    stored = {NAME: torch.full_like(before[NAME], 0.5)}
    save_file(stored, tmp_path / "weights.safetensors")
    load_trained(model, tmp_path / "weights.safetensors")
    after = snapshot(model)
    assert torch.equal(after.pop(NAME), stored[NAME])
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def test_weights_are_cast_to_the_models_precision(model):
    assign(model, {NAME: torch.ones_like(snapshot(model)[NAME], dtype=torch.bfloat16)}, "x")
    assert snapshot(model)[NAME].dtype == torch.float32


def test_positions_of_another_size_of_pictures_are_interpolated(model):
    """Qwen-VL's second stage sees 448 pixels, its first, which trains the encoder, 224."""
    name = "inputs.image.encoder.tower.embeddings.position_embedding.weight"
    assert snapshot(model)[name].shape == (1 + 6 * 6, 128)
    stored = torch.randn(1 + 3 * 3, 128, generator=torch.Generator().manual_seed(0))
    assign(model, {name: stored}, "x")
    assert torch.equal(snapshot(model)[name], resize_positions(stored, 6, first=1))
    assert torch.equal(snapshot(model)[name][0], stored[0])
    with pytest.raises(SpecError, match=r"is \(11, 128\), the model's is \(37, 128\)"):
        assign(model, {name: torch.zeros(11, 128)}, "x")


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("inputs.audio.projector.weight", (1,), "not a parameter of this model"),
        (NAME, (2, 2), r"is \(2, 2\), the model's is \(128, 128\)"),
    ],
)
def test_weights_that_do_not_fit_are_an_error_and_nothing_is_loaded(
    model, tmp_path, name, shape, says
):
    before = snapshot(model)
    good = "inputs.image.projector.layers.0.bias"
    file = tmp_path / "weights.safetensors"
    save_file({good: torch.ones(128), name: torch.zeros(shape)}, file)
    with pytest.raises(SpecError, match=says) as error:
        load_trained(model, file)
    assert str(file) in str(error.value)
    assert torch.equal(snapshot(model)[good], before[good])


def test_a_missing_or_invalid_file_is_an_error(model, tmp_path):
    with pytest.raises(SpecError, match="no such weights"):
        load_trained(model, tmp_path / "weights.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not json")
    with pytest.raises(SpecError, match="not a valid safetensors file"):
        load_trained(model, tmp_path / "broken.safetensors")
