"""A reward model: what it reads, and that it is the same beside a policy."""

from dataclasses import replace

import pytest
import torch

from model.build import build_policy, build_reward_model
from model.freeze import set_trainable
from model.peft.reference import add_reference
from model.presets import system
from model.reward_lm import HEAD, RewardLM
from model.spec.rlhf import RewardModel
from model.spec.system import RlhfStage
from tests.model.test_preference_lm import packed


@pytest.fixture(scope="module")
def stage() -> RlhfStage:
    rlhf = system("digits").with_rlhf().rlhf
    assert rlhf is not None
    return replace(rlhf, objective=RewardModel(), peft=replace(rlhf.peft, rank=6))


@pytest.fixture
def rewarder(digits, stage) -> RewardLM:
    """With adapters that are not zero."""
    model = build_reward_model(digits.model, stage, weights="random", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    set_trainable(model, (*stage.trainable, f"{HEAD}.*"))
    return model.eval()


def test_a_reward_is_of_the_last_token_of_its_answer(rewarder, make_batch):
    """In a packed batch as of each dialogue alone; what follows the answer is not read."""
    lengths = [60, 52, 48, 56]
    rows = make_batch(lengths)
    labels = rows.labels_bt.clone()
    for row, length in enumerate(lengths):
        labels[row, length - 1] = -100  # such as a line break after the end token
    batch = packed(replace(rows, labels_bt=labels), [0, 1, 2, 3])
    found = rewarder(batch).rewards_q
    with torch.no_grad():
        embeddings, kwargs = rewarder.embed(rows, rewarder.media_tokens(rows))
        hidden = rewarder.backbone_hidden_states(rows, embeddings, kwargs)
        last = hidden[torch.arange(4), torch.tensor(lengths) - 2]
        expected = last @ rewarder.reward_head.weight[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found.std() > 0.1


def test_adapters_and_head_alone_are_trained(rewarder, make_batch):
    rewarder(packed(make_batch([50, 50]), [0, 0])).rewards_q.sum().backward()
    moved = {name for name, weight in rewarder.named_parameters() if weight.grad is not None}
    assert moved == {n for n, w in rewarder.named_parameters() if w.requires_grad}
    assert any("lora_" in name for name in moved)
    assert f"{HEAD}.weight" in moved


def test_beside_a_policy_it_gives_the_same_rewards(
    rewarder, digits, stage, make_batch, monkeypatch
):
    """Whatever the policy has learnt; two of them share the media tokens."""
    policy = build_policy(digits.model, digits.stage("rlhf"), weights="random", seed=0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.02)
    batch = packed(make_batch([50, 50, 44, 48]), [0, 0, 1, 1])
    before = policy.eval()(batch).logps_o.detach()
    add_reference(policy.backbone, digits.stage("rlhf").peft)
    trained = {n: w.detach() for n, w in rewarder.named_parameters() if w.requires_grad}
    policy.add_reward_model(stage.peft, trained)
    other = {name: weight * 2 for name, weight in trained.items()}
    policy.add_reward_model(stage.peft, other)
    set_trainable(policy, digits.stage("rlhf").trainable)
    encoded = []
    encode = policy.encode
    monkeypatch.setattr(
        policy, "encode", lambda kind, values: encoded.append(len(values)) or encode(kind, values)
    )
    first, second = policy.rewards(batch)
    assert encoded == [2]
    torch.testing.assert_close(first, rewarder(batch).rewards_q.detach())
    assert not torch.allclose(first, second)
    # And the policy is what it was.
    torch.testing.assert_close(policy(batch).logps_o.detach(), before)
    trainable = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    assert all(".default." in name for name in trainable)
