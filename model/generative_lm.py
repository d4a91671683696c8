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
    drawn: Mapping[str, GenerationOutput]


class GenerativeMultimodalLM(MultimodalLM):
    """t, S_X = LLM(P_X, F_T) and H_X = Θ_out(S_X), beside frozen generators.

    Args:
        spec, inputs, backbone: as of `MultimodalLM`.
        outputs: per modality its way out.
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
        """Return the ways out by kind (`to_image`), in the order of the slots."""
        ways = {}
        for slot in self.spec.outputs:
            way = self.outputs[slot.modality]
            assert isinstance(way, OutputBranch)
            ways[slot.kind] = way
        return ways

    def forward(  # type: ignore[override]
        self, batch: Batch, used: Collection[str] = (), encoded: Collection[str] | None = None
    ) -> GenerativeLMOutput:
        """Return what the LLM says of a micro-batch, and what becomes of what it draws.

        Args:
            batch: the micro-batch.
            used: kinds of media, both ways, that any rank has in this pass. Under ZeRO-3 a module
                is a collective; who lacks a kind runs it for nothing.
            encoded: those of them of which any rank has one whose features, or whose text's
                embedding, are not known; by default all.
        """
        ways = self.output_branches()
        in_used = [kind for kind in used if kind not in ways]
        in_encoded = None if encoded is None else [kind for kind in encoded if kind not in ways]
        embeddings_btd, extra = self.embed(batch, self.media_tokens(batch, in_used, in_encoded))
        said = {kind: way.said() for kind, way in ways.items()}
        hidden_btd = self.think(batch, _with_signals(embeddings_btd, batch, said), extra)
        drawn = {
            kind: way.drawings(
                batch.drawn.get(kind),
                _thought(batch, kind, hidden_btd, said[kind]),
                embeds=encoded is None or kind in encoded,
                keep=self.keep,
            )
            for kind, way in ways.items()
            if kind in used or kind in batch.drawn
        }
        hidden_od = hidden_btd[:, :-1][batch.targeted]
        logits_ov = self.backbone.get_output_embeddings()(hidden_od)
        signals = [way.head(hidden_od) for way in ways.values()]
        return GenerativeLMOutput(torch.cat([logits_ov, *signals], dim=1), batch.targets_m, drawn)


def _with_signals(embeddings_btd: Tensor, batch: Batch, said: Mapping[str, Tensor]) -> Tensor:
    """Return the backbone's input with the signals' embeddings where signals stand."""
    nowhere_bt = torch.zeros_like(batch.ids_bt, dtype=torch.bool)
    places = {
        kind: batch.drawn[kind].media_mask_bt if kind in batch.drawn else nowhere_bt for kind in said
    }
    flat = {kind: said_nd.repeat(batch.count(kind)[0], 1) for kind, said_nd in said.items()}
    return splice(embeddings_btd, flat, places)


def _thought(batch: Batch, kind: str, hidden_btd: Tensor, said_nd: Tensor) -> Tensor:
    """Return what the backbone thinks at its signals, and their embeddings, as one (g, n, d)."""
    if kind not in batch.drawn:
        return hidden_btd.new_zeros(0, *said_nd.shape)
    return hidden_btd[batch.drawn[kind].media_mask_bt].unflatten(0, (-1, len(said_nd))) + said_nd
