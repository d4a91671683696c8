"""Policy and reference in one model: their log-probabilities, and what is computed once."""

from dataclasses import replace

import pytest
import torch

from model.batch import IGNORED, Batch, GenerationTargets, Media, Sequences
from model.build import build, build_policy
from model.freeze import set_trainable
from model.output_branch import signal_ids
from model.peft.reference import add_reference
from model.preference_lm import PreferenceLM, condition_logps
from model.presets import system
from model.spec.rlhf import Grpo
from model.spec.system import RlhfStage


@pytest.fixture(scope="module")
def stage() -> RlhfStage:
    rlhf = system("digits").with_rlhf().rlhf
    assert rlhf is not None
    return rlhf


def with_adapters(model: PreferenceLM, stage: RlhfStage, size: float) -> PreferenceLM:
    """Return a policy whose adapters are random, as after SFT, with their copy as the reference."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * size)
    add_reference(model.backbone, stage.peft)
    set_trainable(model, stage.trainable)
    return model


@pytest.fixture
def policy(digits, stage) -> PreferenceLM:
    """With adapters as after SFT, of which the reference is a copy."""
    model = build_policy(digits.model, stage, weights="random", seed=0)
    return with_adapters(model, stage, 0.02)


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


def test_the_log_probability_of_a_condition_is_a_gaussians_per_element():
    """But for what does not depend on the policy; the gradient is that of torch's Normal."""
    generator = torch.Generator().manual_seed(0)
    sampled, policy, other = torch.randn(3, 2, 5, 4, generator=generator, dtype=torch.float64)
    noise = torch.tensor([0.3, 2.0], dtype=torch.float64)
    policy.requires_grad_()

    def expected(condition):
        return torch.distributions.Normal(condition, noise[:, None, None]).log_prob(sampled)

    found = condition_logps(sampled, policy, noise)
    difference = found - condition_logps(sampled, other, noise)
    wanted = (expected(policy) - expected(other)).mean((1, 2))
    torch.testing.assert_close(difference, wanted.float(), check_dtype=False)
    (gradient,) = torch.autograd.grad(found.sum(), policy)
    (of_normal,) = torch.autograd.grad(expected(policy).mean((1, 2)).sum(), policy)
    torch.testing.assert_close(gradient, of_normal, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def generating() -> PreferenceLM:
    """A tiny policy that generates pictures, sounds and videos, with adapters as after SFT."""
    preset = system("digits_any").tiny().with_rlhf()
    stage = replace(preset.rlhf, objective=Grpo())
    model = build_policy(preset.model, stage, weights="random", seed=0)
    return with_adapters(model, stage, 0.1)


def answers_with_media(model: PreferenceLM, noises: list[float]) -> Batch:
    """Two packed answers, each of three words and a picture; the second ends with a word."""
    vocabulary = model.spec.backbone.vocabulary
    ids = signal_ids(model.spec.outputs, vocabulary)["image"]
    branch = model.spec.outputs[0]
    words = [[5, 6, 7, *[0] * len(ids)], [8, 9, 10, *[0] * len(ids), 11]]
    first = [IGNORED, IGNORED, 7, ids[0], *[IGNORED] * (len(ids) - 1)]
    labels = [*first, *first[:2], 10, *first[3:], 11]
    mask = [number == 0 for own in words for number in own]
    length = len(mask)
    targets = GenerationTargets(
        media_mask_bt=torch.tensor(mask)[None],
        seeds_g=torch.zeros(2, dtype=torch.long),
        ids_gl=None,
        input_values=torch.zeros(0),
        cached_embeds=torch.randn(
            2, *branch.generator.condition_shape, generator=torch.Generator().manual_seed(2)
        ),
        noise_g=torch.tensor(noises),
    )
    return Batch(
        ids_bt=torch.tensor([number for own in words for number in own])[None],
        attention_bt=torch.ones(1, length, dtype=torch.long),
        labels_bt=torch.tensor(labels)[None],
        context_bt=torch.zeros(1, length, dtype=torch.bool),
        generation_targets={branch.kind: targets},
        positions_bt=torch.cat([torch.arange(len(own)) for own in words])[None],
        sequences=Sequences(samples_q=torch.zeros(2), roles_q=torch.full((2,), 4)),
    )


def test_a_sampled_condition_is_one_target_more(generating):
    """Of its answer, after the tokens; its gradient reaches the adapters through the projector."""
    generating.train()
    batch = answers_with_media(generating, [0.5, 0.25])
    out = generating(batch, ["to_image"])
    assert batch.sampled_media == 2
    # 7 and the picture; 10, the picture and 11; then both pictures.
    assert out.owners_o.tolist() == [0, 0, 1, 1, 1, 0, 1]
    assert torch.isfinite(out.logps_o).all()
    torch.testing.assert_close(out.logps_o, out.reference_logps_o)
    assert torch.equal(generating.policy_logps(batch, ["to_image"]), out.logps_o)
    # Twice the noise is a quarter of the squared error.
    wider = generating(answers_with_media(generating, [1.0, 0.25]), ["to_image"]).logps_o[-2:]
    torch.testing.assert_close(wider, out.logps_o[-2:] / torch.tensor([4.0, 1.0]))
    out.logps_o[-2:].sum().backward()
    moved = {name for name, weight in generating.named_parameters() if weight.grad is not None}
    assert moved == {n for n, w in generating.named_parameters() if w.requires_grad}
    assert max(w.grad.abs().max() for w in generating.parameters() if w.requires_grad) > 1e-6
    generating.zero_grad()


def test_media_without_noise_are_no_targets(generating):
    """Those of earlier answers, and all of them where `media_noise` is 0."""
    whole = generating(answers_with_media(generating, [0.5, 0.25]), ["to_image"])
    second = generating(answers_with_media(generating, [0.0, 0.25]), ["to_image"])
    assert second.owners_o.tolist() == [0, 0, 1, 1, 1, 1]
    torch.testing.assert_close(second.logps_o, whole.logps_o[[0, 1, 2, 3, 4, 6]])
    assert answers_with_media(generating, [0.0, 0.0]).sampled_media == 0


def test_a_rank_without_media_calls_the_same_modules(generating):
    """And in the backward pass, as ZeRO-3 needs."""
    batch = replace(answers_with_media(generating, [0.5, 0.25]), generation_targets={})
    branch = generating.output_branches()["to_image"]
    called = []
    handles = [
        branch.projector.register_forward_hook(lambda *_: called.append("forward")),
        branch.projector.enter.register_full_backward_hook(lambda *_: called.append("backward")),
    ]
    out = generating(batch, ["to_image"])
    assert out.owners_o.tolist() == [0, 0, 1, 1, 1]
    out.logps_o.sum().backward()
    for handle in handles:
        handle.remove()
    assert called == ["forward", "forward", "backward"]  # policy and reference
    generating.zero_grad()


def test_only_what_can_be_chosen_has_a_probability(generating):
    """Of each medium the first signal token, among all words; the others are forced."""
    hidden = torch.randn(3, generating.spec.backbone.width)
    shares = generating._logits(hidden).softmax(1)
    ids = signal_ids(generating.spec.outputs, generating.spec.backbone.vocabulary)
    assert shares.shape[1] == generating.spec.backbone.vocabulary + sum(map(len, ids.values()))
    for own in ids.values():
        assert (shares[:, own[0]] > 0).all()
        assert not shares[:, own[1:]].any()
