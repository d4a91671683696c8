"""Cached features instead of media: the same logits and gradients, in any combination."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from model.batch import Batch
from model.build import build
from model.freeze import set_trainable
from model.multimodal_lm import MultimodalLM
from model.presets import system


def with_cached(model: MultimodalLM, batch: Batch, which: list[bool]) -> Batch:
    """Return the batch with cached features of some of its pictures."""
    image = batch.media["image"]
    cached_m = torch.tensor(which)
    features = torch.stack([model.encode("image", one[None])[0] for one in image.input_values])
    media = replace(
        image,
        input_values=image.input_values[~cached_m],
        cached_features=features[cached_m] if cached_m.any() else None,
        cached_m=cached_m if cached_m.any() else None,
        keys=tuple(bytes([i]) for i, one in enumerate(which) if not one),
    )
    return replace(batch, media={"image": media})


def answer(model, batch, *words):
    model.zero_grad()
    logits, targets = model(batch, *words)
    cross_entropy(logits, targets).backward()
    gradients = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    return logits.detach(), gradients


@pytest.mark.parametrize("which", [[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]])
def test_cached_features_give_the_same_logits_and_gradients(
    model, digits, make_batch, which
) -> None:
    set_trainable(model, digits.pt.trainable)
    batch = make_batch([50, 44, 47])
    logits, gradients = answer(model, batch)
    same, others = answer(model, with_cached(model, batch, list(map(bool, which))), ("image",))
    torch.testing.assert_close(same, logits, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("which", "encoded", "calls"),
    [
        ([True, True], (), 0),
        ([True, True], ("image",), 1),
        ([True, False], ("image",), 1),
        (None, (), 0),
        (None, ("image",), 1),
    ],
)
def test_all_ranks_call_the_encoder_or_none(model, make_batch, which, encoded, calls) -> None:
    """The ranks' agreement decides, not the batch of this rank (None: no picture)."""
    batch = make_batch([50, 44], pictures=which is not None)
    if which is not None:
        batch = with_cached(model, batch, which)
    seen = {"encoder": [], "projector": []}
    for part, called in seen.items():
        model.inputs["image"][part].register_forward_hook(lambda *_, c=called: c.append(1))
    with torch.no_grad():
        model(batch, ("image",), encoded)
    assert len(seen["encoder"]) == calls
    assert len(seen["projector"]) == 1


def test_newly_encoded_features_are_recorded(model, make_batch) -> None:
    recorded = []
    model.record_features = lambda kind, keys, features: recorded.append((kind, keys, features))
    batch = make_batch([50, 44, 47])
    with torch.no_grad():
        model(batch)
        assert not recorded  # they have no keys
        model(with_cached(model, batch, [False, True, False]))
    ((kind, keys, features),) = recorded
    assert (kind, keys) == ("image", (b"\0", b"\2"))
    torch.testing.assert_close(
        features,
        model.encode("image", batch.media["image"].input_values[[0, 2]]),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["videochat"])
def test_a_frozen_encoder_is_deterministic_in_training(name) -> None:
    """Its dropout would otherwise change a medium's features every time."""
    preset = system(name).tiny()
    model = build(preset.model, preset.pt, weights="random")
    branch = preset.model.inputs[0]
    values = torch.randn(1, branch.segments, *branch.encoder.shape)
    for parameter in model.encoder(branch.modality).parameters():
        parameter.data.normal_(std=0.1)  # new adapters would hide it
    model.requires_grad_(False).train()
    first, second = (model.encode(branch.modality, values) for _ in "ab")
    assert torch.equal(first, second)
    assert model.backbone.training
    model.encoder(branch.modality).requires_grad_(True)
    model.train()
    first, second = (model.encode(branch.modality, values).detach() for _ in "ab")
    assert not torch.equal(first, second)
