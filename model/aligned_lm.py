"""The model of DLP's MM-PT: projected tokens are trained to match a P-Former's prompts.

Jian et al. 2023 (arXiv:2307.07063), §3.2.

Shapes: m media, k tokens of a medium, u the backbone's width, o positions with a target,
v vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.batch import Batch, sentences_of
from model.input_projectors import pformer
from model.multimodal_lm import MultimodalLM
from model.spec import ModelSpec, SpecError
from model.spec.pformer import Reference
from model.weights import Weights


class AlignedOutput(NamedTuple):
    """Logits and targets as of `MultimodalLM`, projected tokens and the reference's prompts."""

    logits_ov: Tensor
    targets_o: Tensor
    tokens_mku: Tensor
    prompts_mku: Tensor


class AlignedLM(MultimodalLM):
    """A multimodal LLM with a frozen P-Former; each row has one medium and its caption.

    Args:
        spec, inputs, backbone: as of `MultimodalLM`.
        reference: the P-Former.
        max_text: length to which captions are truncated, in tokens.
    """

    def __init__(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, Mapping[str, nn.Module]],
        backbone: PreTrainedModel,
        reference: pformer.PromptFormer,
        max_text: int,
    ) -> None:
        super().__init__(spec, inputs, backbone)
        self.reference = reference
        self._max_text = max_text

    def forward(  # type: ignore[override]
        self, batch: Batch, used: Collection[str] = ()
    ) -> AlignedOutput:
        """Return logits and targets of a micro-batch, projected tokens and their target prompts."""
        projected = self.media_tokens(batch, used)
        with torch.no_grad():
            prompts_bku = self.reference(sentences_of(batch, self._max_text))
        rows = {kind: media.rows_m for kind, media in batch.media.items()}
        none = batch.ids_bt.new_zeros(0)
        prompts = [prompts_bku[rows.get(kind, none)] for kind in projected]
        logits_ov, targets_o = self.compute_logits(batch, projected)
        return AlignedOutput(
            logits_ov=logits_ov,
            targets_o=targets_o,
            tokens_mku=torch.cat(list(projected.values())),
            prompts_mku=torch.cat(prompts),
        )


def build(
    spec: ModelSpec,
    inputs: Mapping[str, Mapping[str, nn.Module]],
    backbone: PreTrainedModel,
    reference: Reference,
    *,
    weights: Weights,
) -> AlignedLM:
    """Return the model with its P-Former; raises SpecError where they do not fit each other."""
    module = build_reference(spec, reference, weights=weights).to(backbone.dtype)
    return AlignedLM(spec, inputs, backbone, module, reference.pformer.max_text)


def build_reference(
    spec: ModelSpec, reference: Reference, *, weights: Weights
) -> pformer.PromptFormer:
    """Return the P-Former whose prompts are targets of the projected tokens, without dropout.

    Raises:
        SpecError: a model with several input branches, or weights that cannot be loaded.
    """
    if len(spec.inputs) != 1:
        raise SpecError(f"reference: needs exactly one input branch, not {len(spec.inputs)}")
    return pformer.build(
        replace(reference.pformer, dropout=0.0),
        prompts=spec.inputs[0].tokens,
        width_out=spec.backbone.width,
        weights=weights,
    )
