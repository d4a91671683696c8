"""The losses of RLHF: pure functions of log-probabilities, and their terms.

Shapes: o target positions, q sequences, p pairs of a chosen answer and another sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.batch import Batch
from model.preference_lm import PreferenceOutput
from model.reward_lm import RewardOutput
from model.spec.rlhf import Dpo, Grpo, Kto, RewardModel
from pipeline.data.preferences import Role
from pipeline.train.loss_term import LossSum, LossTerm


def dpo_loss(chosen_p: Tensor, other_p: Tensor, beta: float) -> Tensor:
    """Direct preference optimization (Rafailov et al. 2023, eq. 7).

    mDPO's preference for the true image (Wang et al. 2024, eq. 4) is the same function, with the
    chosen answer given a corrupted image in place of the rejected one.

    Args:
        chosen_p: log π_θ / π_ref of the chosen answers: sums over their targets, or means for the
            length-normalized form.
        other_p: the same of the other sequences.
        beta: strength of the divergence from the reference.

    Returns:
        The loss of each pair.
    """
    return -F.logsigmoid(beta * (chosen_p - other_p))


def anchor_loss(chosen_p: Tensor, beta: float) -> Tensor:
    """MDPO's anchor, which keeps the chosen answer's reward above 0 (Wang et al. 2024, eq. 5)."""
    return -F.logsigmoid(beta * chosen_p)


def bradley_terry_loss(chosen_p: Tensor, rejected_p: Tensor) -> Tensor:
    """The loss of a reward model (Ouyang et al. 2022, eq. 1, with two answers to a prompt).

    Args:
        chosen_p: rewards of the preferred answers.
        rejected_p: rewards of the other ones.

    Returns:
        The loss of each pair.
    """
    return -F.logsigmoid(chosen_p - rejected_p)


def kto_loss(ratio_q: Tensor, desirable_q: Tensor, objective: Kto) -> Tensor:
    """Kahneman-Tversky optimization with reference point 0 (Ethayarajh et al. 2024, eq. 7).

    Args:
        ratio_q: log π_θ / π_ref of each answer.
        desirable_q: whether it is desirable.
        objective: β and the weights λ.

    Returns:
        λ_y - v of each answer.
    """
    value_q = torch.where(desirable_q, ratio_q, -ratio_q) * objective.beta
    weight_q = torch.where(desirable_q, objective.desirable_weight, objective.undesirable_weight)
    return weight_q * (1 - value_q.sigmoid())


def grpo_loss(
    logps_o: Tensor,
    old_logps_o: Tensor,
    advantages_o: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:
    """The clipped surrogate of GRPO per token (Shao et al. 2024, eq. 3).

    Args:
        logps_o: log π_θ of the sampled tokens.
        old_logps_o: of the policy that has sampled them.
        advantages_o: of the answer that each token is of.
        clip_low: ε below.
        clip_high: ε above; greater than ε below in DAPO, "clip-higher" (Yu et al. 2025, eq. 8).

    Returns:
        The loss of each token.
    """
    ratio_o = (logps_o - old_logps_o).exp()
    clipped_o = ratio_o.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio_o * advantages_o, clipped_o * advantages_o)


def divergence(logps_o: Tensor, reference_logps_o: Tensor) -> Tensor:
    """The k3 estimate of KL(π_θ ‖ π_ref) per token (Schulman 2020; Shao et al. 2024, eq. 4)."""
    difference_o = reference_logps_o - logps_o
    return difference_o.exp() - difference_o - 1


def log_ratios(outputs: PreferenceOutput, *, mean: bool = False) -> Tensor:
    """Return log π_θ / π_ref (q,) of every sequence: the sum, or the mean, over its targets."""
    ratio_o = outputs.logps_o - outputs.reference_logps_o
    total_q = _sum_by_sequence(outputs, ratio_o)
    if not mean:
        return total_q
    return total_q / _sum_by_sequence(outputs, torch.ones_like(ratio_o)).clamp(min=1)


def preference_terms(objective: Dpo | Kto | Grpo | RewardModel) -> tuple[LossTerm, ...]:
    """Return the loss terms of an objective; those of weight 0 are figures to watch.

    With DPO and KTO, the reward of an answer is β log π_θ / π_ref (Rafailov et al. 2023, §4), and
    `accuracy` is the share of pairs whose chosen answer has the greater one. With GRPO, `reward`
    and `length` are means over the sampled answers, and `clipped` is the share of tokens
    without a gradient at the last update, since their ratio is out of bounds. A generated medium
    counts as two tokens: that it begins, and its condition.
    """
    match objective:
        case Grpo():
            return _grpo_terms(objective)
        case Kto():
            return _kto_terms(objective)
        case RewardModel():
            return _reward_terms(objective)
        case _:
            return _dpo_terms(objective)


def _grpo_terms(objective: Grpo) -> tuple[LossTerm, ...]:
    def averaged(outputs: PreferenceOutput, values_o: Tensor) -> LossSum:
        """Every token weighs the same, or every answer."""
        if objective.per_token:
            return LossSum(total=values_o.sum(), count=len(values_o))
        ones_o = torch.ones_like(values_o)
        means_q = _sum_by_sequence(outputs, values_o) / _sum_by_sequence(outputs, ones_o).clamp(
            min=1
        )
        sampled_q = outputs.sequences.roles_q == Role.SAMPLED
        return LossSum(total=means_q[sampled_q].sum(), count=int(sampled_q.sum()))

    def policy(outputs: PreferenceOutput) -> LossSum:
        advantages_q = outputs.sequences.advantages_q
        if advantages_q is None:  # a rank without samples
            return LossSum(total=outputs.logps_o.sum(), count=0)
        advantages_o = advantages_q[outputs.owners_o]
        low, high = objective.clip_low, objective.clip_high
        loss_o = grpo_loss(
            outputs.logps_o, _old_logps(outputs), advantages_o, clip_low=low, clip_high=high
        )
        return averaged(outputs, loss_o)

    def clipped(outputs: PreferenceOutput) -> LossSum:
        advantages_q = outputs.sequences.advantages_q
        if advantages_q is None:
            return LossSum(total=outputs.logps_o.detach().sum(), count=0)
        rises_o = advantages_q[outputs.owners_o] > 0
        ratio_o = (outputs.logps_o.detach() - _old_logps(outputs)).exp()
        low_o, high_o = ratio_o < 1 - objective.clip_low, ratio_o > 1 + objective.clip_high
        out_o = torch.where(rises_o, high_o, low_o)
        return LossSum(total=out_o.sum(), count=len(out_o))

    def kl(outputs: PreferenceOutput) -> LossSum:
        return averaged(outputs, divergence(outputs.logps_o, outputs.reference_logps_o))

    def count(batch: Batch) -> int:
        if objective.per_token:
            return _count_sampled(batch)
        return _count_role(batch, Role.SAMPLED)

    def reward(outputs: PreferenceOutput) -> Tensor:
        rewards_q = outputs.sequences.rewards_q
        return outputs.logps_o.new_zeros(0) if rewards_q is None else rewards_q

    def length(outputs: PreferenceOutput) -> Tensor:
        length_q = _sum_by_sequence(outputs, torch.ones_like(outputs.logps_o))
        return length_q[outputs.sequences.roles_q == Role.SAMPLED]

    terms = (
        LossTerm(name="grpo", weight=1.0, count=count, fn=policy),
        LossTerm(name="kl", weight=objective.beta, count=count, fn=kl),
    )
    watched = [
        _term("reward", 0.0, Role.SAMPLED, reward),
        _term("length", 0.0, Role.SAMPLED, length),
    ]
    if objective.updates > 1:
        watched.append(LossTerm(name="clipped", weight=0.0, count=_count_sampled, fn=clipped))
    return (*(term for term in terms if term.weight), *watched)


def _old_logps(outputs: PreferenceOutput) -> Tensor:
    """Return the targets' log-probabilities (o,) under the policy that has sampled them."""
    old_logps_o = outputs.sequences.old_logps_o
    return outputs.logps_o.detach() if old_logps_o is None else old_logps_o


def _dpo_terms(objective: Dpo) -> tuple[LossTerm, ...]:
    beta = objective.beta

    def ratios(outputs: PreferenceOutput, role: Role) -> Tensor:
        mean = objective.length_normalized
        return log_ratios(outputs, mean=mean)[outputs.sequences.roles_q == role]

    def against(role: Role) -> Callable[[PreferenceOutput], Tensor]:
        return lambda out: dpo_loss(ratios(out, Role.CHOSEN), ratios(out, role), beta)

    def anchor(outputs: PreferenceOutput) -> Tensor:
        return anchor_loss(ratios(outputs, Role.CHOSEN), beta)

    def accuracy(outputs: PreferenceOutput) -> Tensor:
        return (ratios(outputs, Role.CHOSEN) > ratios(outputs, Role.REJECTED)).float()

    weighted = [
        _term("dpo", 1.0, Role.CHOSEN, against(Role.REJECTED)),
        _term("media", objective.media_weight, Role.CHOSEN, against(Role.CORRUPTED)),
        _term("anchor", objective.anchor_weight, Role.CHOSEN, anchor),
        LossTerm(name="sft", weight=objective.sft_weight, count=_count_chosen_targets, fn=_sft),
    ]
    return (
        *(term for term in weighted if term.weight),
        _term("accuracy", 0.0, Role.CHOSEN, accuracy),
        _term("chosen_reward", 0.0, Role.CHOSEN, lambda out: beta * ratios(out, Role.CHOSEN)),
        _term("rejected_reward", 0.0, Role.REJECTED, lambda out: beta * ratios(out, Role.REJECTED)),
    )


def _kto_terms(objective: Kto) -> tuple[LossTerm, ...]:
    def loss(outputs: PreferenceOutput) -> LossSum:
        roles_q = outputs.sequences.roles_q
        loss_q = kto_loss(log_ratios(outputs), roles_q == Role.CHOSEN, objective)
        judged_q = roles_q != Role.NONE
        return LossSum(total=loss_q[judged_q].sum(), count=int(judged_q.sum()))

    def reward(role: Role) -> Callable[[PreferenceOutput], Tensor]:
        return lambda out: objective.beta * log_ratios(out)[out.sequences.roles_q == role]

    def count(batch: Batch) -> int:
        assert batch.sequences is not None
        return int((batch.sequences.roles_q != Role.NONE).sum())

    return (
        LossTerm(name="kto", weight=1.0, count=count, fn=loss),
        _term("chosen_reward", 0.0, Role.CHOSEN, reward(Role.CHOSEN)),
        _term("rejected_reward", 0.0, Role.REJECTED, reward(Role.REJECTED)),
    )


def _reward_terms(objective: RewardModel) -> tuple[LossTerm, ...]:
    def of(outputs: RewardOutput, role: Role) -> Tensor:
        return outputs.rewards_q[outputs.sequences.roles_q == role]

    def both(outputs: RewardOutput) -> tuple[Tensor, Tensor]:
        return of(outputs, Role.CHOSEN), of(outputs, Role.REJECTED)

    def center(outputs: RewardOutput) -> Tensor:
        chosen_p, rejected_p = both(outputs)
        return (chosen_p + rejected_p).square()

    terms = (
        _term("reward", 1.0, Role.CHOSEN, lambda out: bradley_terry_loss(*both(out))),
        _term("center", objective.center, Role.CHOSEN, center),
    )

    def accuracy(outputs: RewardOutput) -> Tensor:
        chosen_p, rejected_p = both(outputs)
        return (chosen_p > rejected_p).float()

    return (
        *(term for term in terms if term.weight),
        _term("accuracy", 0.0, Role.CHOSEN, accuracy),
        _term("chosen_reward", 0.0, Role.CHOSEN, lambda out: of(out, Role.CHOSEN)),
        _term("rejected_reward", 0.0, Role.REJECTED, lambda out: of(out, Role.REJECTED)),
    )


def _term(name: str, weight: float, role: Role, fn: Callable[[Any], Tensor]) -> LossTerm:
    """Return the term of a function that has one value for each sequence of a role."""

    def total(outputs: object) -> LossSum:
        values_p = fn(outputs) if weight else fn(outputs).detach()
        return LossSum(total=values_p.sum(), count=len(values_p))

    return LossTerm(
        name=name, weight=weight, count=lambda batch: _count_role(batch, role), fn=total
    )


def _count_role(batch: Batch, role: Role) -> int:
    assert batch.sequences is not None
    return int((batch.sequences.roles_q == role).sum())


def _count_sampled(batch: Batch) -> int:
    """Return the number of sampled tokens, of which the condition of a medium counts as one."""
    return int(batch.target_mask.sum()) + batch.sampled_media


def _sft(outputs: PreferenceOutput) -> LossSum:
    """The chosen answers' cross-entropy per token, the anchor of Pang et al. 2024 (eq. 1)."""
    chosen_o = outputs.sequences.roles_q[outputs.owners_o] == Role.CHOSEN
    return LossSum(total=-outputs.logps_o[chosen_o].sum(), count=int(chosen_o.sum()))


def _count_chosen_targets(batch: Batch) -> int:
    assert batch.sequences is not None
    owners_o = batch.sequences_bt[:, 1:][batch.target_mask]
    return int((batch.sequences.roles_q[owners_o] == Role.CHOSEN).sum())


def _sum_by_sequence(outputs: PreferenceOutput, values_o: Tensor) -> Tensor:
    none_q = values_o.new_zeros(len(outputs.sequences.roles_q))
    return none_q.index_add(0, outputs.owners_o, values_o)
