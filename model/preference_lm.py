"""A multimodal LLM under RLHF: log-probabilities of answers under the policy and the reference.

Shapes: b sequences, t positions, o positions with a target, v vocabulary, d width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.batch import Batch, Sequences
from model.multimodal_lm import MultimodalLM
from model.peft.reference import add_frozen, frozen_active, policy_active
from model.reward_lm import HEAD, answer_rewards, scalar_head
from model.spec import ModelSpec
from model.spec.peft import Lora, QLora


class PreferenceOutput(NamedTuple):
    """What the losses of RLHF need of a micro-batch.

    Attributes:
        logps_o: log π_θ of every target, in float32, with a gradient.
        reference_logps_o: log π_ref of the same targets.
        owners_o: the sequence of each target.
        sequences: what the sequences are to their samples.
        right_o: whether each target is the policy's most likely token; None in training.
    """

    logps_o: Tensor
    reference_logps_o: Tensor
    owners_o: Tensor
    sequences: Sequences
    right_o: Tensor | None = None


class PreferenceLM(MultimodalLM):
    """`MultimodalLM` whose forward pass computes policy and reference; names of weights are its.

    Both read the same fused input: every medium is encoded, projected and placed once, so that the
    number of its tokens cannot differ. Only adapters may be trained, and their frozen copy is the
    reference (`model.peft.reference.add_reference`).

    Attributes:
        temperature: by which logits are divided, that of the sampling whose answers are trained on.
        with_reference: whether the objective needs the reference at all; else its values are 0.
    """

    temperature: float = 1.0
    with_reference: bool = True

    def __init__(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, Mapping[str, nn.Module]],
        backbone: PreTrainedModel,
    ) -> None:
        super().__init__(spec, inputs, backbone)
        self.reward_heads = nn.ModuleDict()  # by the name of the adapters before each

    def add_reward_model(self, lora: Lora | QLora, values: Mapping[str, Tensor]) -> None:
        """Add a reward model, in place: frozen adapters in the backbone, and a head.

        Args:
            lora: the shape of its adapters.
            values: its trained weights, under the names that they have in `RewardLM`.
        """
        name, weight = f"reward_{len(self.reward_heads)}", values[f"{HEAD}.weight"]
        of_backbone = {n.removeprefix("backbone."): value for n, value in values.items()}
        add_frozen(self.backbone, lora, name, of_backbone)
        head = scalar_head(weight.shape[1]).to(next(self.backbone.parameters()).dtype)
        head.load_state_dict({"weight": weight})
        self.reward_heads[name] = head.requires_grad_(False)

    @torch.no_grad()
    def rewards(self, batch: Batch, used: Collection[str] = ()) -> Tensor:
        """Return the rewards (r, q) of all sequences by each reward model; arguments as `forward`.

        All read the same fused input, as policy and reference do.
        """
        embeddings_btd, kwargs = self.embed(batch, self.media_tokens(batch, used))
        found = []
        for name, head in self.reward_heads.items():
            with frozen_active(self.backbone, name):
                hidden_btd = self.backbone_hidden_states(batch, embeddings_btd, kwargs)
            found.append(answer_rewards(head, hidden_btd, batch))
        return torch.stack(found)

    def forward(self, batch: Batch, used: Collection[str] = ()) -> PreferenceOutput:  # type: ignore[override]
        """Return the log-probabilities of a packed micro-batch of preferences.

        Args:
            batch: the micro-batch, with `sequences`.
            used: kinds of media that any rank has in this forward pass, see `MultimodalLM`.
        """
        assert batch.sequences is not None
        embeddings_btd, kwargs = self.embed(batch, self.media_tokens(batch, used))
        with policy_active(self.backbone):
            policy_o, right_o = self._log_probabilities(batch, embeddings_btd, kwargs)
        reference_o = torch.zeros_like(policy_o)
        if self.with_reference:
            with frozen_active(self.backbone):
                reference_o, _ = self._log_probabilities(batch, embeddings_btd, kwargs)
        owners_o = batch.sequences_bt[:, 1:][batch.target_mask]
        return PreferenceOutput(policy_o, reference_o, owners_o, batch.sequences, right_o)

    @torch.no_grad()
    def policy_logps(self, batch: Batch, used: Collection[str] = ()) -> Tensor:
        """Return log π_θ of every target (o,) as `forward` does, without a gradient."""
        embeddings_btd, kwargs = self.embed(batch, self.media_tokens(batch, used))
        with policy_active(self.backbone):
            return self._log_probabilities(batch, embeddings_btd, kwargs)[0]

    def _log_probabilities(
        self, batch: Batch, embeddings_btd: Tensor, kwargs: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Return that of every target (o,); outside training also which are the most likely."""
        hidden_btd = self.backbone_hidden_states(batch, embeddings_btd, kwargs)[:, :-1]
        logits_ov = self.backbone.get_output_embeddings()(hidden_btd[batch.target_mask])
        logits_ov = logits_ov.float() / self.temperature
        right_o = None if self.training else logits_ov.argmax(-1) == batch.targets_o
        return -F.cross_entropy(logits_ov, batch.targets_o, reduction="none"), right_o

    def generate(self, batch: Batch, **options: Any) -> Tensor:  # noqa: ANN401 -- as `MultimodalLM`
        """Continue prompts under the policy, see `MultimodalLM.generate`."""
        with policy_active(self.backbone):
            return super().generate(batch, **options)
