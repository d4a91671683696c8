"""Losses as pure functions; each returns a sum and the count it will be divided by.

Shapes: m target positions, v vocabulary; b rows of this rank, g rows of all ranks, x vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.batch import IGNORED, Batch


class Loss(NamedTuple):
    """One loss of one micro-batch.

    Attributes:
        total: the sum.
        number: what it will be divided by once all ranks' counts are known.
        each_m: its summands, one a target, without a gradient; None where it is no such sum.
    """

    total: Tensor
    number: int
    each_m: Tensor | None = None


class Objective(Protocol):
    """What a stage minimises: the weighted sum of its losses, each divided by its own count."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weight of each loss, by name."""

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Return what each loss of a micro-batch will count.

        It is told before the forward pass: the ranks first add it up over the global batch.
        """

    def losses(self, outputs: Any) -> Mapping[str, Loss]:  # noqa: ANN401 -- each model's own
        """Return each loss of what the model has returned for a micro-batch."""


def text_loss(logits_mv: Tensor, targets_m: Tensor, *, smoothing: float = 0.0) -> Loss:
    """Cross-entropy of the text, L_txt = CE(LLM(P_X, F_T), t) (survey eq. 2).

    Args:
        logits_mv: in any precision.
        targets_m: the words' ids.
        smoothing: of the labels, over the vocabulary.

    Returns:
        The sum over the targets in float32 (0, with a gradient of 0, where there are none), their
        number, and the summands.
    """
    losses_m = F.cross_entropy(
        logits_mv.float(), targets_m, reduction="none", label_smoothing=smoothing
    )
    return Loss(losses_m.sum(), targets_m.numel(), losses_m.detach())


def contrastive_loss(
    similarity_bg: Tensor,
    positives_b: Tensor,
    valid_b: Tensor,
    valid_g: Tensor,
    *,
    smoothing: float = 0.0,
) -> Loss:
    """Cross-entropy of finding one's own partner among those of all ranks (InfoNCE).

    It depends on who is compared with whom: on the samples of all ranks in one forward pass. Any
    number of ranks gives the same value for the same samples, but accumulation does not stand
    in for a larger micro-batch.

    Args:
        similarity_bg: over the temperature.
        positives_b: the index of a row's own partner.
        valid_b: which rows of this rank stand for samples; the others have no loss.
        valid_g: the same of all ranks; nobody is compared with a filler.
        smoothing: of the labels, over the samples that are compared.

    Returns:
        The sum over this rank's samples, and their number.
    """
    hidden_bg = similarity_bg.float().masked_fill(~valid_g, -torch.inf)
    log_shares_bg = hidden_bg.log_softmax(1).masked_fill(~valid_g, 0.0)
    own_b = log_shares_bg.gather(1, positives_b[:, None])[:, 0]
    mean_b = log_shares_bg.sum(1) / valid_g.sum().clamp(min=1)
    loss_b = -(1 - smoothing) * own_b - smoothing * mean_b
    return Loss(torch.where(valid_b, loss_b, 0.0).sum(), int(valid_b.sum()))


def matching_loss(logits_x2: Tensor, matches_x: Tensor) -> Loss:
    """Cross-entropy of telling right pairs from wrong ones (ITM; BLIP-2, Li et al. 2023, §3.2).

    Args:
        logits_x2: of "do not match" and "match".
        matches_x: 1, 0, or `IGNORED` where there is no such pair: fillers, and wrong partners
            where a pass holds one sample only.

    Returns:
        The sum over all pairs, and the number of right ones times three: each has two wrong ones.
    """
    total = F.cross_entropy(logits_x2.float(), matches_x, ignore_index=IGNORED, reduction="sum")
    return Loss(total, 3 * int((matches_x == 1).sum()))


def squared_distance(vectors: Tensor, targets: Tensor) -> Loss:
    """Squared error against targets that get no gradient; the count is of numbers.

    DLP's quantisation (each prompt to its nearest word of the backbone) and alignment (projected
    tokens to the reference's prompts; Jian et al. 2023, §3.1 and §3.2).
    """
    difference = vectors.float() - targets.detach().float()
    return Loss(difference.square().sum(), vectors.numel())


class TextObjective:
    """Survey eq. 2, of the logits and targets that the model returns."""

    weights: Mapping[str, float] = {"text": 1.0}

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Return the number of text targets."""
        return {"text": int(batch.target_mask.sum())}

    def losses(self, outputs: tuple[Tensor, Tensor]) -> Mapping[str, Loss]:
        """Return the text's loss."""
        return {"text": text_loss(*outputs)}
