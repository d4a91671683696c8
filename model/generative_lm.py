"""The multimodal LLM that also draws (survey §2.4 and §2.5).

Shapes: b sequences, t positions, d the backbone's width, o positions with a target, v vocabulary
with the signals behind it, g media of a kind, n signals of a medium.
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
    """Logits and targets as of `MultimodalLM`, and what comes out by kind (`to_image`)."""

    logits_ov: Tensor
    targets_o: Tensor
    generation: Mapping[str, GenerationOutput]


class GenerativeMultimodalLM(MultimodalLM):
    """t, S_X = LLM(P_X, F_T) and H_X = Θ_out(S_X), beside frozen generators.

    Args:
        spec, inputs, backbone: as of `MultimodalLM`.
        outputs: per modality its branch out.
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
        """Return the branches out by kind (`to_image`), in the order of the slots."""
        branches = {}
        for slot in self.spec.outputs:
            branch = self.outputs[slot.modality]
            assert isinstance(branch, OutputBranch)
            branches[slot.kind] = branch
        return branches

    def forward(  # type: ignore[override]
        self, batch: Batch, used: Collection[str] = (), encoded: Collection[str] | None = None
    ) -> GenerativeLMOutput:
        """Return what the LLM says of a micro-batch, and what becomes of what it draws.

        Args:
            batch: the micro-batch.
            used: kinds of media, input and output, that any rank has in this pass. Under ZeRO-3
                calling a module is a collective; a rank without the kind runs a dummy.
            encoded: those of them of which any rank has one whose features, or whose text's
                embedding, are not cached; by default all.
        """
        branches = self.output_branches()
        in_used = [kind for kind in used if kind not in branches]
        in_encoded = None if encoded is None else [kind for kind in encoded if kind not in branches]
        embeddings_btd, extra = self.embed(batch, self.media_tokens(batch, in_used, in_encoded))
        signals = {kind: branch.signal_embeddings() for kind, branch in branches.items()}
        hidden_btd = self.backbone_hidden_states(
            batch, _with_signals(embeddings_btd, batch, signals), extra
        )
        generation = {
            kind: branch.generation_output(
                batch.generation_targets.get(kind),
                _signal_hidden(batch, kind, hidden_btd, signals[kind]),
                embeds=encoded is None or kind in encoded,
                keep=self.keep,
            )
            for kind, branch in branches.items()
            if kind in used or kind in batch.generation_targets
        }
        hidden_od = hidden_btd[:, :-1][batch.targeted]
        logits_ov = self.backbone.get_output_embeddings()(hidden_od)
        signal_logits = [branch.head(hidden_od) for branch in branches.values()]
        logits_ov = torch.cat([logits_ov, *signal_logits], dim=1)
        return GenerativeLMOutput(logits_ov, batch.targets_m, generation)


def _with_signals(embeddings_btd: Tensor, batch: Batch, signals: Mapping[str, Tensor]) -> Tensor:
    """Return the backbone's input with the signals' embeddings where signals stand."""
    nowhere_bt = torch.zeros_like(batch.ids_bt, dtype=torch.bool)
    places = {
        kind: batch.generation_targets[kind].media_mask_bt
        if kind in batch.generation_targets
        else nowhere_bt
        for kind in signals
    }
    flat = {
        kind: signals_nd.repeat(batch.count(kind)[0], 1) for kind, signals_nd in signals.items()
    }
    return splice(embeddings_btd, flat, places)


def _signal_hidden(batch: Batch, kind: str, hidden_btd: Tensor, signals_nd: Tensor) -> Tensor:
    """Return what the backbone thinks at its signals, and their embeddings, as one (g, n, d)."""
    if kind not in batch.generation_targets:
        return hidden_btd.new_zeros(0, *signals_nd.shape)
    return (
        hidden_btd[batch.generation_targets[kind].media_mask_bt].unflatten(0, (-1, len(signals_nd)))
        + signals_nd
    )
