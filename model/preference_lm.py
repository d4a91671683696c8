"""A multimodal LLM under RLHF: log-probabilities of answers under the policy and the reference.

Shapes: b sequences, t positions, o positions with a target, v vocabulary (followed by the signal
tokens), d width, g generated media, l and w positions and width of a condition.
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
from model.output_branch import OutputBranch, signal_hidden, signal_ids
from model.peft.reference import add_frozen, frozen_active, policy_active
from model.reward_lm import HEAD, answer_rewards, scalar_head
from model.spec import ModelSpec
from model.spec.peft import Lora, QLora


class PreferenceOutput(NamedTuple):
    """What the losses of RLHF need of a micro-batch.

    Attributes:
        logps_o: log π_θ of every target, in float32, with a gradient; after the tokens, each medium
            whose condition was sampled is one target more.
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


def condition_logps(sampled_glw: Tensor, condition_glw: Tensor, noise_g: Tensor) -> Tensor:
    """Return the log-probability (g,) of each sampled condition, per element.

    log N(H̃; H_θ, σ² I) / (l w), but for what does not depend on θ: −mean((H̃ − H_θ)²) / 2σ². DDPO
    (Black et al. 2023, arXiv:2305.13301) learns in the same way from images, with the steps of
    denoising as Gaussian actions; here the condition is the action, and the generator, which stays
    frozen, a part of the environment, as the judge is.

    The sum over thousands of elements would outweigh an answer's tokens, and any update would leave
    the bounds of the clipped ratio. The mean, which DDPO's code takes, has the size of a token's,
    whatever the generator: if each element moves by σ / 5, it changes by at most about 0.2, the
    usual bound of the ratio.

    Args:
        sampled_glw: H̃, the conditions under which the media were generated.
        condition_glw: H_θ, the policy's, with a gradient.
        noise_g: σ of each.
    """
    error_glw = (sampled_glw - condition_glw).float() / noise_g[:, None, None]
    return -error_glw.square().mean((1, 2)) / 2


class PreferenceLM(MultimodalLM):
    """`MultimodalLM` whose forward pass computes policy and reference; names of weights are its.

    Both read the same fused input: every medium is encoded, projected and placed once, so that the
    number of its tokens cannot differ. Only adapters may be trained, and their frozen copy is the
    reference (`model.peft.reference.add_reference`). Output branches are frozen, too: what the
    policy says about a medium's condition changes with the hidden states at its signal tokens.

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
        outputs: Mapping[str, OutputBranch] | None = None,
    ) -> None:
        super().__init__(spec, inputs, backbone, outputs)
        self.reward_heads = nn.ModuleDict()  # by the name of the adapters before each

    def train(self, mode: bool = True) -> PreferenceLM:
        """Set training mode, except for the frozen output branches: no condition is dropped."""
        super().train(mode)
        self.outputs.eval()
        return self

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
        embeddings_btd, kwargs = self.fuse(batch, used)
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
        fused = self.fuse(batch, used)
        with policy_active(self.backbone):
            policy_o, right_o = self._log_probabilities(batch, *fused, used)
        reference_o = torch.zeros_like(policy_o)
        if self.with_reference:
            with frozen_active(self.backbone):
                reference_o, _ = self._log_probabilities(batch, *fused, used)
        owners_o = self._owners(batch)
        return PreferenceOutput(policy_o, reference_o, owners_o, batch.sequences, right_o)

    @torch.no_grad()
    def policy_logps(self, batch: Batch, used: Collection[str] = ()) -> Tensor:
        """Return log π_θ of every target (o,) as `forward` does, without a gradient."""
        fused = self.fuse(batch, used)
        with policy_active(self.backbone):
            return self._log_probabilities(batch, *fused, used)[0]

    def _log_probabilities(
        self,
        batch: Batch,
        embeddings_btd: Tensor,
        kwargs: dict[str, Tensor],
        used: Collection[str],
    ) -> tuple[Tensor, Tensor | None]:
        """Return those of tokens, then those of media by kind.

        Outside training also which tokens are the most likely.
        """
        hidden_btd = self.backbone_hidden_states(batch, embeddings_btd, kwargs)
        logits_ov = self._logits(hidden_btd[:, :-1][batch.target_mask])
        logits_ov = logits_ov.float() / self.temperature
        tokens_o = -F.cross_entropy(logits_ov, batch.targets_o, reduction="none")
        right_o = None if self.training else logits_ov.argmax(-1) == batch.targets_o
        media = [
            self._condition_logps(batch, branch, hidden_btd)
            for kind, branch in self.output_branches().items()
            if kind in used or kind in batch.generation_targets
        ]
        return torch.cat([tokens_o, *media]), right_o

    def _logits(self, hidden_od: Tensor) -> Tensor:
        """Return the logits (o, v); of a medium's signal tokens only the first is ever chosen."""
        logits_ov: Tensor = self.backbone.get_output_embeddings()(hidden_od)
        branches = self.output_branches().values()
        if not branches:
            return logits_ov
        ids = signal_ids([branch.spec for branch in branches], self.spec.backbone.vocabulary)
        later = torch.tensor(
            [number for own in ids.values() for number in own[1:]], dtype=torch.long
        )
        logits_ov = torch.cat([logits_ov, *(branch.head(hidden_od) for branch in branches)], dim=1)
        return logits_ov.index_fill(1, later.to(logits_ov.device), -torch.inf)

    def _condition_logps(self, batch: Batch, branch: OutputBranch, hidden_btd: Tensor) -> Tensor:
        """Return the log-probabilities of the sampled conditions of one kind of media."""
        targets = batch.generation_targets.get(branch.spec.kind)
        signals_nd = branch.signal_embeddings()
        hidden_gnd = signal_hidden(batch, branch.spec, hidden_btd, signals_nd)
        output = branch.generation_output(targets, hidden_gnd, embeds_given=True)
        noise_g = hidden_btd.new_zeros(0) if targets is None else targets.noise_g
        assert noise_g is not None
        sampled_g = noise_g > 0
        return condition_logps(
            output.target_embeds_glw[sampled_g],
            output.condition_embeds_glw[sampled_g],
            noise_g[sampled_g],
        )

    def _owners(self, batch: Batch) -> Tensor:
        """Return the sequence of each target, in the order of `_log_probabilities`."""
        owners = [batch.sequences_bt[:, 1:][batch.target_mask]]
        for kind, branch in self.output_branches().items():
            targets = batch.generation_targets.get(kind)
            if targets is not None and targets.noise_g is not None:
                owners_gn = batch.sequences_bt[targets.media_mask_bt].view(-1, branch.spec.signals)
                owners.append(owners_gn[targets.noise_g > 0, 0])
        return torch.cat(owners)

    def generate(self, batch: Batch, **options: Any) -> Tensor:  # noqa: ANN401 -- as `MultimodalLM`
        """Continue prompts under the policy, see `MultimodalLM.generate`."""
        with policy_active(self.backbone):
            return super().generate(batch, **options)
