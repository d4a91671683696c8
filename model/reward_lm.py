"""A reward model: low-rank adapters and a scalar head on the last token of each answer.

Shapes: b sequences (1, packed), t positions, q answers, d width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.batch import IGNORED, Batch, Sequences
from model.multimodal_lm import MultimodalLM
from model.spec import ModelSpec

HEAD = "reward_head"
"""Of a parameter's name: the head that is trained."""


class RewardOutput(NamedTuple):
    """What the losses of a reward model need of a micro-batch.

    Attributes:
        rewards_q: of every sequence, in float32, with a gradient.
        sequences: what the sequences are to their samples.
    """

    rewards_q: Tensor
    sequences: Sequences


class RewardLM(MultimodalLM):
    """`MultimodalLM` whose forward pass returns a scalar per answer; names of weights are its.

    At first, the rewards of random states of unit variance have unit variance.

    Args:
        spec: the branches and which components they share.
        inputs: see `MultimodalLM`.
        backbone: the language model with the adapters that are trained.
    """

    def __init__(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, Mapping[str, nn.Module]],
        backbone: PreTrainedModel,
    ) -> None:
        super().__init__(spec, inputs, backbone)
        head = scalar_head(spec.backbone.width)
        nn.init.normal_(head.weight, std=(spec.backbone.width + 1) ** -0.5)
        self.reward_head = head.to(next(backbone.parameters()).dtype)

    def forward(self, batch: Batch, used: Collection[str] = ()) -> RewardOutput:  # type: ignore[override]
        """Return the rewards of a packed micro-batch of preferences; see `MultimodalLM.forward`."""
        assert batch.sequences is not None
        embeddings_btd, kwargs = self.embed(batch, self.media_tokens(batch, used))
        hidden_btd = self.backbone_hidden_states(batch, embeddings_btd, kwargs)
        return RewardOutput(answer_rewards(self.reward_head, hidden_btd, batch), batch.sequences)


def scalar_head(width: int) -> nn.Linear:
    """Return a head without a bias, which differences of rewards do not determine."""
    return nn.Linear(width, 1, bias=False)


def answer_rewards(head: nn.Module, hidden_btd: Tensor, batch: Batch) -> Tensor:
    """Return the rewards (q,) of the sequences of a packed batch, in float32.

    They are read where the answer's last token has gone in, which is the sequence's last target; of
    a sequence without one (a dummy), at the first position of all.
    """
    assert batch.sequences is not None
    place_t = torch.arange(batch.ids_bt.shape[1], device=batch.ids_bt.device)
    place_t = place_t * (batch.labels_bt[0] != IGNORED)
    last_q = place_t.new_zeros(len(batch.sequences.roles_q))
    last_q = last_q.scatter_reduce(0, batch.sequences_bt[0], place_t, "amax")
    rewards_q1: Tensor = head(hidden_btd[0, last_q])
    return rewards_q1[:, 0].float()
