"""Losses of RLHF: equal to TRL's on the same log-probabilities, and to their formulas.

The figures are what `_compute_loss` of TRL 1.16's `DPOTrainer`, `KTOTrainer` and `GRPOTrainer` (not
in training) returns for the log-probabilities of `example` and `sampled`, with `loss_type` as named
beside each, and its `RewardTrainer.compute_loss` for `REWARDS`.
"""

import math

import pytest
import torch

from model.batch import Sequences
from model.preference_lm import PreferenceOutput
from model.reward_lm import RewardOutput
from model.spec.rlhf import Dpo, Grpo, Kto, RewardModel
from pipeline.data.preferences import Role
from pipeline.train.losses import compute_losses
from pipeline.train.preference_losses import (
    anchor_loss,
    dpo_loss,
    kto_loss,
    log_ratios,
    preference_terms,
)

PAIRS, LONGEST = 4, 6
LENGTHS = (6, 3, 5, 1, 2, 6, 4, 3)
"""Of four chosen answers, then of the rejected ones."""

REWARDS = torch.randn(2 * PAIRS, generator=torch.Generator().manual_seed(0)) * 2
"""Of four chosen answers, then of the rejected ones."""


def log_probabilities() -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the policy and of the reference, padded: chosen answers come first."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (-torch.rand(2 * PAIRS, LONGEST, generator=generator) * 2 for _ in range(2))
    return policy, reference


def example(*, requires_grad: bool = False) -> PreferenceOutput:
    """The same as a packed micro-batch: each chosen answer is followed by its rejected one."""
    rows = [row for pair in range(PAIRS) for row in (pair, PAIRS + pair)]
    policy, reference = (
        torch.cat([values[row, : LENGTHS[row]] for row in rows]) for values in log_probabilities()
    )
    owners = torch.repeat_interleave(torch.tensor([LENGTHS[row] for row in rows]))
    sequences = Sequences(
        samples_q=torch.arange(2 * PAIRS) // 2,
        roles_q=torch.tensor([Role.CHOSEN, Role.REJECTED] * PAIRS),
    )
    return PreferenceOutput(policy.requires_grad_(requires_grad), reference, owners, sequences)


def means(
    objective: Dpo | Kto | Grpo | RewardModel, outputs: PreferenceOutput | RewardOutput
) -> dict[str, float]:
    sums = compute_losses(preference_terms(objective), outputs)
    return {name: float(loss.total) / loss.count for name, loss in sums.items()}


@pytest.mark.parametrize(
    ("objective", "loss", "chosen", "rejected"),
    [
        (Dpo(beta=0.1), 0.6799821257591248, 0.14609424769878387, 0.09992729127407074),  # sigmoid
        (Dpo(beta=0.3), 1.1179966926574707, 0.4382827877998352, 0.299781858921051),  # and sft, 0.5
        (Dpo(beta=2.0, length_normalized=True), 0.7989821434020996, None, None),  # sigmoid_norm
    ],
)
def test_dpo_is_trls(
    objective: Dpo, loss: float, chosen: float | None, rejected: float | None
) -> None:
    if objective.beta == 0.3:
        objective = Dpo(beta=0.3, sft_weight=0.5)
    found = means(objective, example())
    total = found["dpo"] + objective.sft_weight * found.get("sft", 0.0)
    assert total == pytest.approx(loss, rel=1e-6)
    if chosen is not None:
        assert found["chosen_reward"] == pytest.approx(chosen, rel=1e-6)
        assert found["rejected_reward"] == pytest.approx(rejected, rel=1e-6)
        assert found["accuracy"] == 0.5


def test_kto_is_trls() -> None:
    """`apo_zero_unpaired` with weights of 1 and 1.33, and TRL's labels 1 1 0 1 0 0 1 0."""
    packed = log_ratios(example())
    rows = torch.tensor([row for pair in range(PAIRS) for row in (pair, PAIRS + pair)])
    desirable = torch.tensor([1, 1, 0, 1, 0, 0, 1, 0], dtype=torch.bool)[rows]
    losses = kto_loss(packed, desirable, Kto(beta=0.5, undesirable_weight=1.33))
    assert float(losses.mean()) == pytest.approx(0.7237215042114258, rel=1e-6)


@pytest.mark.parametrize(
    ("center", "loss"), [(0.0, 1.5694775581359863), (0.01, 1.6514939069747925)]
)
def test_reward_models_are_trls(center: float, loss: float) -> None:
    """`center_rewards_coefficient` None and 0.01; a dummy's sequence between the pairs."""
    rows = [row for pair in range(PAIRS) for row in (pair, PAIRS + pair)]
    roles, rewards = [int(Role.CHOSEN), int(Role.REJECTED)] * PAIRS, REWARDS[rows].tolist()
    roles.insert(4, int(Role.NONE))
    rewards.insert(4, 100.0)
    samples = torch.tensor([0, 0, 1, 1, 2, 3, 3, 4, 4])
    sequences = Sequences(samples_q=samples, roles_q=torch.tensor(roles))
    outputs = RewardOutput(torch.tensor(rewards), sequences)
    found = means(RewardModel(center=center), outputs)
    total = found["reward"] + center * found.get("center", 0.0)
    assert total == pytest.approx(loss, rel=1e-6)
    assert found["accuracy"] == 0.5
    margin = found["chosen_reward"] - found["rejected_reward"]
    assert margin == pytest.approx(0.43947675824165344, rel=1e-5)


def sampled(*, once: bool) -> PreferenceOutput:
    """The same answers as if sampled; if not `once`, the policy has moved since."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (-torch.rand(2 * PAIRS, LONGEST, generator=generator) * 2 for _ in range(2))
    old = policy + torch.rand(2 * PAIRS, LONGEST, generator=generator) - 0.5
    advantages = torch.randn(2 * PAIRS, generator=generator)
    policy, reference, old = (
        torch.cat([row[:length] for row, length in zip(values, LENGTHS, strict=True)])
        for values in (policy, reference, old)
    )
    sequences = Sequences(
        samples_q=torch.arange(2 * PAIRS),
        roles_q=torch.full((2 * PAIRS,), Role.SAMPLED),
        rewards_q=advantages,
        advantages_q=advantages,
        old_logps_o=None if once else old,
    )
    owners = torch.repeat_interleave(torch.tensor(LENGTHS))
    return PreferenceOutput(policy, reference, owners, sequences)


@pytest.mark.parametrize(
    ("objective", "loss", "kl", "clipped"),
    [
        (Grpo(beta=0.04, updates=2), -0.07530488818883896, None, 1 / 3),  # grpo
        (
            Grpo(per_token=True, updates=2, clip_high=0.28),
            -0.029849283397197723,
            None,
            7 / 30,
        ),  # dapo
        (Grpo(beta=0.04, per_token=True), None, 0.4089750647544861, None),
        (Grpo(), -0.07387059181928635, None, None),  # grpo, with one update
    ],
)
def test_grpo_is_trls(
    objective: Grpo, loss: float | None, kl: float | None, clipped: float | None
) -> None:
    found = means(objective, sampled(once=objective.updates == 1))
    if loss is not None:
        total = found["grpo"] + objective.beta * found.get("kl", 0.0)
        assert total == pytest.approx(loss, rel=1e-6)
    if kl is not None:
        assert found["kl"] == pytest.approx(kl, rel=1e-6)
    assert found.get("clipped") == (clipped and pytest.approx(clipped))


def test_before_the_first_step_nothing_is_preferred() -> None:
    """π_θ = π_ref: every ratio is 0, so that DPO is log 2 and KTO a half."""
    outputs = example()
    same = outputs._replace(reference_logps_o=outputs.logps_o)
    found = means(Dpo(media_weight=0.0, anchor_weight=1.0), same)
    assert found["dpo"] == found["anchor"] == pytest.approx(math.log(2))
    assert means(Kto(), same)["kto"] == 0.5


def test_mdpos_terms() -> None:
    """Wang et al. 2024, eqs. 4 and 5, by hand: ratios 1, -1 and 0.5 with β = 0.2."""
    chosen, corrupted = torch.tensor([1.0]), torch.tensor([-1.0])
    assert float(dpo_loss(chosen, corrupted, 0.2)) == pytest.approx(math.log1p(math.exp(-0.4)))
    assert float(anchor_loss(torch.tensor([0.5]), 0.2)) == pytest.approx(math.log1p(math.exp(-0.1)))


def test_gradients_raise_chosen_answers_and_lower_rejected_ones() -> None:
    outputs = example(requires_grad=True)
    terms = [term for term in preference_terms(Dpo()) if term.weight]
    (loss,) = compute_losses(terms, outputs).values()
    loss.total.backward()
    gradient_o = outputs.logps_o.grad
    assert gradient_o is not None
    chosen_o = outputs.sequences.roles_q[outputs.owners_o] == Role.CHOSEN
    assert (gradient_o[chosen_o] < 0).all()
    assert (gradient_o[~chosen_o] > 0).all()


def test_a_rank_without_samples_has_zeros_with_a_gradient() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    dummy = Sequences(samples_q=torch.tensor([0]), roles_q=torch.tensor([int(Role.NONE)]))
    empty = torch.zeros(0, dtype=torch.long)
    outputs = PreferenceOutput(nothing, torch.zeros(0), empty, dummy)
    for objective in (Dpo(sft_weight=1.0, anchor_weight=1.0), Kto(), Grpo(beta=0.1, updates=2)):
        losses = compute_losses(preference_terms(objective), outputs)
        assert all(loss.count == 0 and loss.total.item() == 0.0 for loss in losses.values())
        torch.stack([loss.total for loss in losses.values()]).sum().backward()
    one = RewardOutput(torch.ones(1, requires_grad=True), dummy)
    losses = compute_losses(preference_terms(RewardModel(center=0.1)), one)
    assert all(loss.count == 0 and loss.total.item() == 0.0 for loss in losses.values())
    torch.stack([loss.total for loss in losses.values()]).sum().backward()
