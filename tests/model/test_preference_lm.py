"""Policy and reference in one model: their log-probabilities, and what is computed once."""

from dataclasses import replace

import pytest
import torch

from model.batch import IGNORED, Batch, Media, Sequences
from model.build import build, build_policy
from model.freeze import set_trainable
from model.peft.reference import add_reference
from model.preference_lm import PreferenceLM
from model.presets import system
from model.spec.system import RlhfStage


@pytest.fixture(scope="module")
def stage() -> RlhfStage:
    rlhf = system("digits").with_rlhf().rlhf
    assert rlhf is not None
    return rlhf


@pytest.fixture
def policy(digits, stage) -> PreferenceLM:
    """With adapters as after SFT, of which the reference is a copy."""
    model = build_policy(digits.model, stage, weights="random", seed=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    add_reference(model.backbone, stage.peft)
    set_trainable(model, stage.trainable)
    return model


def packed(batch: Batch, order: list[int]) -> Batch:
    """Return the rows of a batch in one sequence, whose images are those of `order`."""
    lengths = batch.attention_bt.sum(1).tolist()

    def joined(values_bt: torch.Tensor) -> torch.Tensor:
        rows = zip(values_bt, lengths, strict=True)
        return torch.cat([row[:length] for row, length in rows])[None]

    images = batch.media["image"]
    values = [images.input_values[order.index(number)] for number in sorted(set(order))]
    media = Media(
        input_values=torch.stack(values),
        media_mask_bt=joined(images.media_mask_bt),
        rows_m=torch.zeros(len(values), dtype=torch.long),
        starts_m=torch.zeros(len(values), dtype=torch.long),
        order_e=torch.tensor(order),
    )
    labels = batch.labels_bt.clone()
    labels[:, 0] = IGNORED
    count = len(lengths)
    return Batch(
        ids_bt=joined(batch.ids_bt),
        attention_bt=joined(batch.attention_bt),
        labels_bt=joined(labels),
        context_bt=torch.zeros(1, sum(lengths), dtype=torch.bool),
        media={"image": media},
        positions_bt=torch.cat([torch.arange(length) for length in lengths])[None],
        sequences=Sequences(samples_q=torch.arange(count) // 2, roles_q=torch.arange(count) % 2),
    )


def test_log_probabilities_are_those_of_each_dialogue_alone(policy, digits, stage, make_batch):
    """Under the policy and under the reference, after a step of the policy."""
    rows = make_batch([60, 52, 48, 56])
    images = rows.media["image"]
    shared = images.input_values[[0, 0, 2, 2]]  # both answers of a sample see its image
    rows = replace(rows, media={"image": replace(images, input_values=shared)})
    batch = packed(rows, [0, 0, 1, 1])
    plain = build(digits.model, replace(digits.sft, peft=stage.peft), weights="random", seed=0)
    plain.load_state_dict({n: w for n, w in policy.state_dict().items() if ".reference." not in n})
    before = batch_log_probabilities(plain, rows)
    out = policy(batch)
    torch.testing.assert_close(out.logps_o, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.reference_logps_o, before, atol=1e-4, rtol=1e-4)
    out.logps_o.sum().backward()
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.grad is not None:
                weight.sub_(1e-2 * weight.grad)
    plain.load_state_dict({n: w for n, w in policy.state_dict().items() if ".reference." not in n})
    after = batch_log_probabilities(plain, rows)
    assert (after - before).abs().max() > 1e-2
    out = policy(batch)
    torch.testing.assert_close(out.logps_o, after, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.reference_logps_o, before, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def batch_log_probabilities(model, rows):
    labels = rows.labels_bt.clone()
    labels[:, 0] = IGNORED
    logits, targets, *_ = model.eval()(replace(rows, labels_bt=labels))
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def test_a_medium_is_encoded_once(policy, make_batch, monkeypatch):
    """For all answers of its sample, under the policy and under the reference."""
    encoded = []
    encode = policy.encode
    monkeypatch.setattr(
        policy, "encode", lambda kind, values: encoded.append(len(values)) or encode(kind, values)
    )
    policy(packed(make_batch([50, 50, 50, 50]), [0, 0, 1, 1]))
    assert encoded == [2]


def test_only_the_policys_adapters_get_a_gradient(policy, make_batch):
    policy.train()
    out = policy(packed(make_batch([50, 50]), [0, 0]))
    assert not out.reference_logps_o.requires_grad
    out.logps_o.sum().backward()
    moved = {name for name, weight in policy.named_parameters() if weight.grad is not None}
    assert moved == {n for n, w in policy.named_parameters() if w.requires_grad}
    assert all(".default." in name for name in moved)
    assert policy.backbone.training


@pytest.mark.parametrize("dora", [False, True])
def test_the_reference_has_no_dropout(dora, digits, stage, make_batch):
    rlhf = replace(stage, peft=replace(stage.peft, dropout=0.5, use_dora=dora))
    model = build_policy(digits.model, rlhf, weights="random", seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    add_reference(model.backbone, rlhf.peft)
    model.train()
    batch = packed(make_batch([50, 50]), [0, 0])
    one, two = model(batch), model(batch)
    assert not torch.equal(one.logps_o, two.logps_o)
    assert torch.equal(one.reference_logps_o, two.reference_logps_o)
