"""The multimodal LLM that also generates media (survey §2.4 and §2.5).

Shapes: b sequences, t positions, d the backbone's width, o positions with a target, v vocabulary
followed by the signal tokens, g generated media of a kind, n signal tokens of a medium.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.batch import Batch
from model.fusion.splice import splice
from model.multimodal_lm import MultimodalLM
from model.output_branch import GenerationOutput, OutputBranch
from model.spec import ModelSpec


class GenerativeLMOutput(NamedTuple):
    """Logits and targets as of `MultimodalLM`, and the output branches' results by kind."""

    logits_ov: Tensor
    targets_o: Tensor
    generation: Mapping[str, GenerationOutput]


class GenerativeMultimodalLM(MultimodalLM):
    """t, S_X = LLM(P_X, F_T) and H_X = Θ_out(S_X), with frozen generators.

    Args:
        spec, inputs, backbone: as of `MultimodalLM`.
        outputs: the output branch of each modality.
    """

    def __init__(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, Mapping[str, nn.Module]],
        backbone: PreTrainedModel,
        outputs: Mapping[str, OutputBranch],
    ) -> None:
        super().__init__(spec, inputs, backbone)
        self.outputs = nn.ModuleDict(dict(outputs))

    def output_branches(self) -> dict[str, OutputBranch]:
        """Return the output branches by kind (`to_image`), in the order of the spec."""
        branches = {}
        for spec in self.spec.outputs:
            branch = self.outputs[spec.modality]
            assert isinstance(branch, OutputBranch)
            branches[spec.kind] = branch
        return branches

    def forward(  # type: ignore[override]
        self, batch: Batch, used: Collection[str] = ()
    ) -> GenerativeLMOutput:
        """Return logits and targets of a micro-batch, and its generated media's outputs.

        Args:
            batch: the micro-batch.
            used: kinds of media, input and output, that any rank has in this forward pass. Under
                ZeRO-3 calling a module is a collective; a rank without the kind runs a dummy.
        """
        branches = self.output_branches()
        in_used = [kind for kind in used if kind not in branches]
        embeddings_btd, kwargs = self.embed(batch, self.media_tokens(batch, in_used))
        signals = {kind: branch.signal_embeddings() for kind, branch in branches.items()}
        hidden_btd = self.backbone_hidden_states(
            batch, _with_signals(embeddings_btd, batch, signals), kwargs
        )
        generation = {
            kind: branch.generation_output(
                batch.generation_targets.get(kind),
                _signal_hidden(batch, kind, hidden_btd, signals[kind]),
                embeds_given=kind in self.feature_kinds,
            )
            for kind, branch in branches.items()
            if kind in used or kind in batch.generation_targets
        }
        hidden_od = hidden_btd[:, :-1][batch.target_mask]
        logits_ov = self.backbone.get_output_embeddings()(hidden_od)
        signal_logits = [branch.head(hidden_od) for branch in branches.values()]
        logits_ov = torch.cat([logits_ov, *signal_logits], dim=1)
        return GenerativeLMOutput(logits_ov, batch.targets_o, generation)


def _with_signals(embeddings_btd: Tensor, batch: Batch, signals: Mapping[str, Tensor]) -> Tensor:
    """Return the backbone's input with signal embeddings at the positions of signal tokens."""
    nowhere_bt = torch.zeros_like(batch.ids_bt, dtype=torch.bool)
    masks = {
        kind: batch.generation_targets[kind].media_mask_bt
        if kind in batch.generation_targets
        else nowhere_bt
        for kind in signals
    }
    flat = {kind: signals_nd.repeat(batch.count(kind), 1) for kind, signals_nd in signals.items()}
    return splice(embeddings_btd, flat, masks)


def _signal_hidden(batch: Batch, kind: str, hidden_btd: Tensor, signals_nd: Tensor) -> Tensor:
    """Return the hidden states at the signal tokens plus their embeddings, (g, n, d)."""
    if kind not in batch.generation_targets:
        return hidden_btd.new_zeros(0, *signals_nd.shape)
    return (
        hidden_btd[batch.generation_targets[kind].media_mask_bt].unflatten(0, (-1, len(signals_nd)))
        + signals_nd
    )
