"""The composed model: dummies and padding change nothing, logits at targets are complete."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from model.batch import IGNORED, Batch, Media
from model.build import build
from model.freeze import set_trainable
from model.fusion.splice import FusionError


def gradients(model, batch, used=()):
    model.zero_grad()
    logits, targets, *_ = model(batch, used)
    cross_entropy(logits, targets, reduction="sum").backward()
    return {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


@torch.no_grad()
def full_logits(model, batch):
    hidden = model.backbone.get_decoder()(
        inputs_embeds=model.embed(batch, model.media_tokens(batch))[0],
        attention_mask=batch.attention_bt,
    ).last_hidden_state
    return model.backbone.get_output_embeddings()(hidden)


def test_logits_at_targets_equal_those_of_all_positions(model, make_batch):
    batch = make_batch([50, 44])
    with torch.no_grad():
        logits, targets, *_ = model(batch)
    shifted = batch.labels_bt[:, 1:] != IGNORED
    assert torch.equal(targets, batch.ids_bt[:, 1:][shifted])
    expected = full_logits(model, batch)[:, :-1][shifted]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_without_targets_there_are_no_logits_but_a_graph(model, make_batch):
    batch = make_batch([50])
    batch = replace(batch, labels_bt=torch.full_like(batch.labels_bt, IGNORED))
    logits, targets, *_ = model(batch)
    assert logits.shape == (0, 384)
    assert targets.shape == (0,)
    cross_entropy(logits, targets, reduction="sum").backward()
    grads = [w.grad for name, w in model.named_parameters() if "projector" in name]
    assert all(grad is not None and not grad.any() for grad in grads)


def test_padding_changes_nothing(model, make_batch):
    short = make_batch([48])
    padded = make_batch([48], pad_to=60)
    with torch.no_grad():
        logits, *_ = model(short)
        same, *_ = model(padded)
    torch.testing.assert_close(logits, same, atol=1e-5, rtol=1e-5)


def test_other_rows_change_nothing(model, make_batch):
    both = make_batch([50, 46])
    shorter = Batch(
        ids_bt=both.ids_bt[1:, :46],
        attention_bt=both.attention_bt[1:, :46],
        labels_bt=both.labels_bt[1:, :46],
        context_bt=both.context_bt[1:, :46],
        media={
            "image": Media(
                input_values=both.media["image"].input_values[1:],
                media_mask_bt=both.media["image"].media_mask_bt[1:, :46],
                rows_m=torch.tensor([0]),
                starts_m=torch.tensor([1]),
            )
        },
    )
    with torch.no_grad():
        beside_another, *_ = model(both)
        alone, *_ = model(shorter)
    torch.testing.assert_close(beside_another[-len(alone) :], alone, atol=1e-5, rtol=1e-5)


def test_a_dummy_changes_neither_logits_nor_gradients(model, make_batch):
    model.requires_grad_(True)
    batch = make_batch([20, 16], pictures=False)
    plain = gradients(model, batch)
    with_dummy = gradients(model, batch, used=("image",))
    with torch.no_grad():
        assert torch.equal(model(batch)[0], model(batch, ("image",))[0])
    for name, grad in plain.items():
        if not name.startswith("inputs."):
            assert torch.equal(grad, with_dummy[name]), name
    added = {name: grad for name, grad in with_dummy.items() if name.startswith("inputs.")}
    assert any(added)
    assert not any(grad.any() for grad in added.values())
    assert {name for name in added if "projector" in name} == {
        name for name, _ in model.named_parameters() if "projector" in name
    }


def test_no_dummy_is_run_where_there_is_a_medium(model, make_batch):
    calls = []
    model.projector("image").register_forward_hook(lambda *_: calls.append(1))
    model(make_batch([50]), ("image",))
    assert calls == [1]


def test_pt_reaches_the_projector_through_the_frozen_backbone(model, digits, make_batch):
    names = set_trainable(model, digits.pt.trainable)
    found = gradients(model, make_batch([50]))
    assert sorted(found) == sorted(names)
    assert all(grad.abs().sum() > 0 for grad in found.values())


@pytest.mark.parametrize("stage", ["pt", "sft"])
def test_activation_checkpointing_gives_the_same_gradients(digits, make_batch, stage):
    found = []
    for recompute in (False, True):
        settings = replace(digits.stage(stage), recompute=recompute)
        model = build(digits.model, settings, weights="random", seed=0).train()
        set_trainable(model, settings.trainable)
        if stage == "sft":  # adapters start at zero and could hide a missing gradient
            torch.manual_seed(1)
            for name, weight in model.named_parameters():
                if ".lora_B." in name:
                    weight.data.normal_(std=0.02)
        found.append(gradients(model, make_batch([50, 45])))
    kept, recomputed = found
    assert kept.keys() == recomputed.keys()
    for name, grad in kept.items():
        torch.testing.assert_close(recomputed[name], grad, atol=1e-6, rtol=1e-5)


def test_one_picture_too_many_is_an_error(model, make_batch):
    batch = make_batch([50])
    image = batch.media["image"]
    twice = replace(image, input_values=torch.cat([image.input_values] * 2))
    with pytest.raises(FusionError, match=r"\(72, 128\), must be \(36, 128\)"):
        model(replace(batch, media={"image": twice}))


def test_a_frozen_encoder_keeps_no_graph(model, make_batch):
    values = make_batch([50]).media["image"].input_values
    model.requires_grad_(False)
    assert not model.encode("image", values).requires_grad
    model.encoder("image").requires_grad_(True)
    assert model.encode("image", values).requires_grad


def test_greedy_decoding_equals_full_forward_passes(model, make_batch):
    batch = make_batch([45])
    answer = model.generate(batch, max_new_tokens=4, pad_id=0, end_ids=[2])
    ids = batch.ids_bt
    image = batch.media["image"]
    places = image.media_mask_bt
    for step in range(answer.shape[1]):
        grown = replace(
            batch,
            ids_bt=ids,
            attention_bt=torch.ones_like(ids),
            labels_bt=ids,
            media={"image": replace(image, media_mask_bt=places)},
        )
        chosen = full_logits(model, grown)[:, -1].argmax(-1, keepdim=True)
        assert answer[:, step : step + 1].equal(chosen)
        ids = torch.cat([ids, chosen], dim=1)
        places = torch.cat([places, torch.zeros_like(chosen, dtype=torch.bool)], dim=1)
