"""Training of a P-Former on sentences alone, through a frozen language model.

Jian et al. 2023 (arXiv:2307.07063), §3.1; details that the paper leaves open follow
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
from model.pretraining.contrastive import ProjectionHead, Temperature, gather, rank_offset
from model.spec import ModelSpec
from model.spec.init import SentenceInit
from model.text import TextIds


class SentenceOutput(NamedTuple):
    """Inputs of the P-Former's losses.

    Args:
        similar_bg: similarities of this rank's sentences to all, divided by the temperature.
        positives_b: index of each sentence itself among all rows.
        valid_b, valid_g: masks of rows with a sentence; the others are dummy rows.
        prompts_xu, words_xu: each prompt of a sentence, and the nearest word embedding.
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
    """The backbone's word embeddings as the codebook of a vector quantisation.

    The weight is shared with the embedding; as a parameter of this module ZeRO-3 gathers it here.
    """

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.words = embeddings.weight

    @torch.no_grad()
    def forward(self, vectors_xu: Tensor) -> Tensor:
        """Return the word embedding (x, u) nearest to each vector, by Euclidean distance."""
        words_vu = self.words.to(vectors_xu.dtype)
        # ‖x − w‖² without ‖x‖², which is the same for every word.
        distances_xv = words_vu.square().sum(1) - 2 * vectors_xu @ words_vu.T
        return words_vu[distances_xv.argmin(1)]


class SentenceHeads(nn.Module):
    """Heads that only the training of a P-Former has."""

    def __init__(self, spec: SentenceInit, codebook: Codebook) -> None:
        super().__init__()
        self.sentences = ProjectionHead(spec.pformer.width, spec.width)
        self.temperature = Temperature(spec.temperature)
        self.codebook = codebook


class SentenceModel(MultimodalLM):
    """A frozen backbone that reconstructs a sentence from a P-Former's prompts.

    The prompts take the positions of the input branch's tokens in MM-PT.

    Args:
        spec: settings of the losses.
        model: spec of the multimodal LLM, whose input branches are not built.
        backbone: frozen.
        reference: the P-Former, which has this name in the following stages, too.
        mask_id: id of `[MASK]` in its vocabulary.
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
        self.reference: PromptFormer = reference
        embeddings = backbone.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        self.heads = SentenceHeads(spec, Codebook(embeddings))
        self._mask_id, self._mask_ratio = mask_id, spec.mask_ratio

    def forward(  # type: ignore[override]
        self, batch: Batch, used: Collection[str] = ()
    ) -> SentenceOutput:
        """Return the inputs of the losses for one micro-batch; a collective.

        Args:
            batch: each row has a sentence in both vocabularies, after the positions of one medium;
                rows without are dummies. Every rank has the same number of rows.
            used: ignored, since no medium is encoded.
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
        # A row's medium has no pixels: its positions are filled with the prompts.
        prompts_mku = prompts_bku[rows_m]
        logits_mv, targets_m = self.compute_logits(batch, {self.objective.modality: prompts_mku})
        prompts_xu = prompts_mku.flatten(0, 1)
        return SentenceOutput(
            similar_bg=similar_bg,
            positives_b=torch.arange(len(valid_b), device=valid_b.device) + rank_offset(valid_b),
            valid_b=valid_b,
            valid_g=gather(valid_b.long()).bool(),
            prompts_xu=prompts_xu,
            words_xu=self.heads.codebook(prompts_xu),
            logits_mv=logits_mv,
            targets_m=targets_m,
        )

    def _masked(self, text: TextIds) -> TextIds:
        """Mask a share of the words, but not `[CLS]`, so that no prompt depends on one word."""
        random_bl = torch.rand(text.ids_bl.shape, device=text.ids_bl.device)
        masked_bl = random_bl < self.objective.mask_ratio
        masked_bl &= text.mask_bl.bool()
        masked_bl[:, 0] = False
        return TextIds(
            ids_bl=text.ids_bl.masked_fill(masked_bl, self._mask_id), mask_bl=text.mask_bl
        )
