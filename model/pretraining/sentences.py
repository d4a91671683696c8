"""A P-Former's own training: sentences alone, and a frozen language model that says them.

Jian et al. 2023 (arXiv:2307.07063), §3.1; behaviour that the paper leaves open is that of
yiren-jian/BLIText, `pformer_opt.py`.

Shapes: b sentences of this rank, g of all ranks, l text positions of the P-Former, t positions of
the backbone, k prompts, w the P-Former's width, u the backbone's width, m targets, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.batch import Batch, sentences_of
from model.input_projectors.pformer import PromptFormer
from model.multimodal_lm import MultimodalLM
from model.pretraining.contrastive import Space, Temperature, first_row, gather
from model.spec import ModelSpec
from model.spec.init import SentenceInit
from model.text import TextIds


class SentenceOutput(NamedTuple):
    """What the P-Former's losses are made of.

    Args:
        similar_bg: similarities of this rank's sentences to all, over the temperature.
        positives_b: the index, among all, of a sentence itself.
        valid_b, valid_g: which rows stand for sentences; the others are fillers.
        prompts_xu, words_xu: each prompt of a sentence, and the backbone's word nearest to it.
        logits_mv, targets_m: of the backbone, given the prompts.
    """

    similar_bg: Tensor
    positives_b: Tensor
    valid_b: Tensor
    valid_g: Tensor
    prompts_xu: Tensor
    words_xu: Tensor
    logits_mv: Tensor
    targets_m: Tensor


class Codebook(nn.Module):
    """The backbone's word embeddings as the code words of a vector quantisation.

    The weight is the embedding's own; holding it here lets ZeRO-3 gather it for this module.
    """

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.words = embeddings.weight

    @torch.no_grad()
    def forward(self, vectors_xu: Tensor) -> Tensor:
        """Return the word (x, u) nearest to each vector, in the Euclidean sense."""
        words_vu = self.words.to(vectors_xu.dtype)
        # ‖x − w‖² without ‖x‖², which is the same for every word.
        distances_xv = words_vu.square().sum(1) - 2 * vectors_xu @ words_vu.T
        return words_vu[distances_xv.argmin(1)]


class SentenceHeads(nn.Module):
    """What only a P-Former's own training has."""

    def __init__(self, spec: SentenceInit, codebook: Codebook) -> None:
        super().__init__()
        self.sentences = Space(spec.pformer.width, spec.width)
        self.temperature = Temperature(spec.temperature)
        self.codebook = codebook


class SentenceModel(MultimodalLM):
    """A frozen backbone that says a sentence, given the prompts that a P-Former makes of it.

    The prompts stand where the slot's tokens stand in MM-PT.

    Args:
        spec: the losses' figures.
        model: the multimodal LLM's; its inputs are not built.
        backbone: frozen.
        reference: the P-Former, under the name that it has in the stages after this one.
        mask_id: of `[MASK]` in its vocabulary.
    """

    def __init__(
        self,
        spec: SentenceInit,
        model: ModelSpec,
        backbone: PreTrainedModel,
        reference: PromptFormer,
        mask_id: int,
    ) -> None:
        super().__init__(model, {}, backbone)
        self.objective = spec
        self.reference = reference
        embeddings = backbone.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        self.heads = SentenceHeads(spec, Codebook(embeddings))
        self._mask_id = mask_id

    def forward(  # type: ignore[override]
        self, batch: Batch, used: Collection[str] = (), encoded: Collection[str] | None = None
    ) -> SentenceOutput:
        """Return what the losses need of one micro-batch; a collective.

        Args:
            batch: each row a sentence in both vocabularies, behind the places of one medium; a row
                without is a filler. Every rank has as many rows.
            used: of no meaning here: no medium is read.
            encoded: likewise.
        """
        text = sentences_of(batch, self.objective.max_text)
        media = batch.media.get(self.objective.modality)
        rows_m = text.ids_bl.new_zeros(0) if media is None else media.rows_m
        valid_b = torch.zeros(len(text.ids_bl), dtype=torch.bool, device=text.ids_bl.device)
        valid_b[rows_m] = True

        first_bw = self.reference.read(self._masked(text))
        prompts_bku = self.reference.prompts_of(first_bw)
        sentences_be = self.heads.sentences(first_bw)
        similar_bg = self.heads.temperature(sentences_be @ gather(sentences_be).T)
        # A row's sentence is a medium without pixels: its places are where the prompts go.
        prompts_mku = prompts_bku[rows_m]
        logits_mv, targets_m = self.compute_logits(batch, {self.objective.modality: prompts_mku})
        prompts_xu = prompts_mku.flatten(0, 1)
        return SentenceOutput(
            similar_bg=similar_bg,
            positives_b=torch.arange(len(valid_b), device=valid_b.device) + first_row(valid_b),
            valid_b=valid_b,
            valid_g=gather(valid_b.long()).bool(),
            prompts_xu=prompts_xu,
            words_xu=self.heads.codebook(prompts_xu),
            logits_mv=logits_mv,
            targets_m=targets_m,
        )

    def _masked(self, text: TextIds) -> TextIds:
        """Mask a share of the words, never `[CLS]`, so that no prompt depends on a single one."""
        chosen_bl = torch.rand(text.ids_bl.shape, device=text.ids_bl.device) < self.objective.masked
        chosen_bl &= text.mask_bl.bool()
        chosen_bl[:, 0] = False
        return TextIds(
            ids_bl=text.ids_bl.masked_fill(chosen_bl, self._mask_id), mask_bl=text.mask_bl
        )
