"""Features instead of media: the same logits and gradients, and no encoder is called."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from model.batch import Batch
from model.build import build
from model.freeze import set_trainable
from model.multimodal_lm import MultimodalLM
from model.presets import system


def with_features(model: MultimodalLM, batch: Batch) -> Batch:
    """Return the batch with features instead of its pictures."""
    image = batch.media["image"]
    features = torch.stack([model.encode("image", one[None])[0] for one in image.input_values])
    return replace(batch, media={"image": replace(image, input_values=None, features=features)})


def answer(model, batch, *words):
    model.zero_grad()
    logits, targets, *_ = model(batch, *words)
    cross_entropy(logits, targets).backward()
    gradients = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    return logits.detach(), gradients


@pytest.mark.parametrize("used", [(), ("image",)])
def test_features_give_the_same_logits_and_gradients(model, digits, make_batch, used) -> None:
    set_trainable(model, digits.pt.trainable)
    batch = make_batch([50, 44, 47])
    logits, gradients = answer(model, batch)
    given = with_features(model, batch)
    model.feature_kinds = {"image"}
    same, others = answer(model, given, used)
    torch.testing.assert_close(same, logits, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("pictures", [False, True])
def test_all_ranks_call_the_encoder_or_none(model, make_batch, given, pictures) -> None:
    """The stage decides, whether this rank has a picture or not."""
    batch = make_batch([50, 44], pictures=pictures)
    if given:
        batch = with_features(model, batch) if pictures else batch
        model.feature_kinds = {"image"}
    seen = {"encoder": [], "projector": []}
    for part, called in seen.items():
        model.inputs["image"][part].register_forward_hook(lambda *_, c=called: c.append(1))
    with torch.no_grad():
        model(batch, ("image",))
    assert len(seen["encoder"]) == (not given)
    assert len(seen["projector"]) == 1


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
