"""Splicing: tokens are inserted at the masks, and mismatches are errors."""

import pytest
import torch

from model.fusion.splice import FusionError, splice


def mask(*rows):
    return torch.tensor([[symbol == "x" for symbol in row] for row in rows])


def test_tokens_are_inserted_in_reading_order_and_nothing_else_changes():
    embeddings = torch.arange(2 * 4 * 3, dtype=torch.float32).reshape(2, 4, 3)
    images = -torch.arange(1, 4 * 3 + 1, dtype=torch.float32).reshape(4, 3)
    sounds = torch.full((1, 3), 99.0)
    places = {"image": mask(".xx.", "x..x"), "audio": mask("....", ".x..")}
    given = embeddings.clone()
    fused = splice(embeddings, {"image": images, "audio": sounds}, places)
    assert torch.equal(embeddings, given), "the argument must stay as it is"
    assert torch.equal(fused[0, 1], images[0])
    assert torch.equal(fused[0, 2], images[1])
    assert torch.equal(fused[1, 0], images[2])
    assert torch.equal(fused[1, 3], images[3])
    assert torch.equal(fused[1, 1], sounds[0])
    text = ~(places["image"] | places["audio"])
    assert torch.equal(fused[text], embeddings[text])


def test_without_media_nothing_changes():
    embeddings = torch.randn(1, 3, 2)
    assert torch.equal(splice(embeddings, {}, {}), embeddings)


def test_the_gradient_reaches_tokens_and_text_but_not_what_was_replaced():
    embeddings = torch.zeros(1, 3, 2, requires_grad=True)
    image = torch.zeros(1, 2, requires_grad=True)
    fused = splice(embeddings, {"image": image}, {"image": mask(".x.")})
    (fused * torch.arange(6.0).reshape(1, 3, 2)).sum().backward()
    assert image.grad.tolist() == [[2.0, 3.0]]
    assert embeddings.grad[0].tolist() == [[0.0, 1.0], [0.0, 0.0], [4.0, 5.0]]


def test_tokens_are_cast_to_the_embeddings_precision():
    embeddings = torch.zeros(1, 1, 2, dtype=torch.bfloat16)
    fused = splice(embeddings, {"image": torch.ones(1, 2)}, {"image": mask("x")})
    assert fused.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("tokens", "places", "says"),
    [
        (
            {"image": torch.zeros(1, 2)},
            {"image": mask("xx.")},
            r"image: .*\(1, 2\), must be \(2, 2\)",
        ),
        ({"image": torch.zeros(3, 2)}, {"image": mask("xx.")}, r"\(3, 2\), must be \(2, 2\)"),
        ({"image": torch.zeros(2, 5)}, {"image": mask("xx.")}, r"\(2, 5\), must be \(2, 2\)"),
        ({"image": torch.zeros(1, 2)}, {"image": mask("x..", "...")}, "image: mask"),
        ({"image": torch.zeros(1, 2)}, {}, r"media of \['image'\], positions of \[\]"),
        ({}, {"image": mask("x..")}, r"media of \[\], positions of \['image'\]"),
        (
            {"image": torch.zeros(1, 2), "audio": torch.zeros(1, 2)},
            {"image": mask("x.."), "audio": mask("x..")},
            "audio: a position is claimed by two",
        ),
    ],
    ids=["too few", "too many", "width", "mask", "no places", "no media", "both"],
)
def test_every_mismatch_is_an_error(tokens, places, says):
    with pytest.raises(FusionError, match=says):
        splice(torch.zeros(1, 3, 2), tokens, places)
