"""BLIP-2's stage 1: a Q-Former learns to relate pictures to captions.

Li et al. 2023, *BLIP-2* (arXiv:2301.12597), §3.2: image-text contrastive learning (ITC), matching
(ITM) and image-grounded text generation (ITG), one forward pass each. Details that the paper leaves
open follow salesforce/LAVIS, `blip2_qformer.py`.

Shapes: b pairs of this rank, dummy rows included; g pairs of all ranks; f segments of a medium, n
tokens of a segment, d the encoder's width; q queries, l text positions, w the Q-Former's width; m
target words, v vocabulary; k projected tokens, u the backbone's width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.batch import IGNORED, Batch, sentences_of
from model.features import media_features
from model.input_projectors.attention import initialise
from model.input_projectors.pformer import PromptFormer
from model.input_projectors.qformer import QFormerProjector
from model.pretraining.contrastive import (
    ProjectionHead,
    Temperature,
    gather,
    query_similarity,
    rank_offset,
    sample_hard_negatives,
)
from model.segments import encode_segments
from model.spec import InputBranchSpec
from model.spec.init import ImageTextInit
from model.text import TextIds


class ImageTextOutput(NamedTuple):
    """Inputs of the losses of stage 1.

    Args:
        to_texts_bg, to_images_bg: similarities, divided by the temperature, of this rank's pictures
            to all texts, and of its texts to all pictures.
        positives_b: index of each row's positive among all rows.
        valid_b, valid_g: masks of rows with a pair; the others are dummy rows.
        matching_x2: logits of "no match" and "match" (3b, 2).
        matches_x: 1, 0, or `IGNORED` where there is no such pair.
        words_mv, targets_m: logits and targets of the captions' words, m of them.
        tokens_xku, prompts_xku: projected tokens and the reference P-Former's prompts of each pair.
    """

    to_texts_bg: Tensor
    to_images_bg: Tensor
    positives_b: Tensor
    valid_b: Tensor
    valid_g: Tensor
    matching_x2: Tensor
    matches_x: Tensor
    words_mv: Tensor
    targets_m: Tensor
    tokens_xku: Tensor | None
    prompts_xku: Tensor | None


class Heads(nn.Module):
    """The heads that BLIP-2's stage 1 adds to a Q-Former; no later stage has them."""

    def __init__(self, spec: ImageTextInit, projector: QFormerProjector) -> None:
        super().__init__()
        width = projector.spec.width
        self.images = ProjectionHead(width, spec.width)
        self.texts = ProjectionHead(width, spec.width)
        self.temperature = Temperature(spec.temperature)
        self.match = nn.Linear(width, 2)
        initialise(self.match)
        words = projector.qformer.words
        assert words is not None  # `build_init` sets `text_branch`
        self.words = WordHead(words.word_embeddings)


class WordHead(nn.Module):
    """Hidden states to logits over the vocabulary, tied to the embeddings, as in BERT."""

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        vocabulary, width = embeddings.weight.shape
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.decoder = nn.Linear(width, vocabulary)
        initialise(self.dense)
        initialise(self.decoder)
        self.decoder.weight = embeddings.weight

    def forward(self, states_mw: Tensor) -> Tensor:
        """Return logits (m, v)."""
        logits_mv: Tensor = self.decoder(self.norm(F.gelu(self.dense(states_mw))))
        return logits_mv


class ImageTextModel(nn.Module):
    """A frozen encoder, one branch's Q-Former with its text branch, and the heads of stage 1.

    Parameters have the names of the multimodal LLM, so that MM-PT can load the weights.

    Args:
        spec: settings of the losses.
        branch: spec of the input branch.
        modules: its `encoder` and `projector`.
        reference: DLP's frozen P-Former, whose prompts are targets of the projected tokens; or
            None.

    Attributes:
        feature_kinds: the branch's modality, if all batches of all ranks give features instead of
            input values; the encoder is then never called.
    """

    feature_kinds: Collection[str] = ()

    def __init__(
        self,
        spec: ImageTextInit,
        branch: InputBranchSpec,
        modules: Mapping[str, nn.Module],
        reference: PromptFormer | None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.branch = branch
        self.inputs = nn.ModuleDict({branch.modality: nn.ModuleDict(modules)})
        self.heads = Heads(spec, self.projector)
        self.reference = reference

    @property
    def encoder(self) -> nn.Module:
        """The branch's encoder."""
        branch = self.inputs[self.branch.modality]
        assert isinstance(branch, nn.ModuleDict)
        return branch["encoder"]

    @property
    def projector(self) -> QFormerProjector:
        """The branch's projector."""
        branch = self.inputs[self.branch.modality]
        assert isinstance(branch, nn.ModuleDict)
        projector = branch["projector"]
        assert isinstance(projector, QFormerProjector)  # `build_init` checks the spec
        return projector

    def train(self, mode: bool = True) -> ImageTextModel:
        """Set training mode, except for the frozen encoder: features must be deterministic."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, batch: Batch, used: Collection[str] = ()) -> ImageTextOutput:
        """Return the inputs of the losses for one micro-batch; a collective.

        Args:
            batch: at most one medium per row, and its caption in `sentences`. Every rank has the
                same number of rows; rows without a medium are dummies, which take part in the
                collectives but in no loss.
            used: ignored, since every rank reads its branch in every micro-step.
        """
        features_bnd, text, valid_b = self._pairs(batch)
        qformer = self.projector.qformer
        # Under the causal mask queries attend to queries only: ITG's query states are also ITC's.
        queries_bqw, states_blw = qformer.joint(features_bnd, self._with_dec(text), causal=True)
        images_bqe = self.heads.images(queries_bqw)
        texts_be = self.heads.texts(qformer.read_text(text)[:, 0])
        to_texts_bg = query_similarity(images_bqe, gather(texts_be))
        to_images_bg = query_similarity(gather(images_bqe), texts_be).T
        temperature = self.heads.temperature
        to_texts_bg, to_images_bg = temperature(to_texts_bg), temperature(to_images_bg)
        positives_b = torch.arange(len(valid_b), device=valid_b.device) + rank_offset(valid_b)
        valid_g = gather(valid_b.long()).bool()

        image_negatives_b, found_b = sample_hard_negatives(to_images_bg, positives_b, valid_g)
        text_negatives_b, _ = sample_hard_negatives(to_texts_bg, positives_b, valid_g)
        negative_text = TextIds(
            ids_bl=gather(text.ids_bl)[text_negatives_b],
            mask_bl=gather(text.mask_bl)[text_negatives_b],
        )
        negative_features_bnd = gather(features_bnd)[image_negatives_b]
        pairs_xqw, _ = qformer.joint(
            torch.cat([features_bnd, negative_features_bnd, features_bnd]),
            _concatenate(text, text, negative_text),
        )
        no_match_b = torch.where(valid_b & found_b, 0, IGNORED)
        is_target_bl = text.mask_bl[:, 1:].bool() & valid_b[:, None]
        tokens_xku, prompts_xku = self._tokens_and_prompts(queries_bqw[valid_b], text, valid_b)
        return ImageTextOutput(
            to_texts_bg=to_texts_bg,
            to_images_bg=to_images_bg,
            positives_b=positives_b,
            valid_b=valid_b,
            valid_g=valid_g,
            matching_x2=self.heads.match(pairs_xqw).mean(1),
            matches_x=torch.cat([torch.where(valid_b, 1, IGNORED), no_match_b, no_match_b]),
            words_mv=self.heads.words(states_blw[:, :-1][is_target_bl]),
            targets_m=text.ids_bl[:, 1:][is_target_bl],
            tokens_xku=tokens_xku,
            prompts_xku=prompts_xku,
        )

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ITC compares, for retrieval.

        Args:
            batch: as of `forward`.

        Returns:
            Normalised embeddings of the queries (b, q, e) of each picture, whose similarity to a
            text is the maximum over them, and of each text (b, e), and the mask (b,) of pairs.
        """
        features_bnd, text, valid_b = self._pairs(batch)
        qformer = self.projector.qformer
        queries_bqw, _ = qformer.joint(features_bnd, self._with_dec(text), causal=True)
        texts_be = self.heads.texts(qformer.read_text(text)[:, 0])
        return self.heads.images(queries_bqw), texts_be, valid_b

    def _pairs(self, batch: Batch) -> tuple[Tensor, TextIds, Tensor]:
        """Return features (b, f·n, d), captions (b, l) and the mask of rows with a pair (b,).

        The segments of a medium are concatenated. Rows without a medium have zeros.
        """
        rows, device = len(batch.ids_bt), batch.ids_bt.device
        kind, media = self.branch.modality, batch.media.get(self.branch.modality)
        features_mfnd = media_features(
            self.branch,
            self._encode,
            media,
            given=kind in self.feature_kinds,
            device=device,
        )
        # Not by name: under ZeRO-3, accessing a weight outside its module gathers it.
        dtype = next(self.projector.parameters()).dtype
        features_bfnd = features_mfnd.new_zeros(rows, *features_mfnd.shape[1:], dtype=dtype)
        valid_b = torch.zeros(rows, dtype=torch.bool, device=device)
        if media is not None:
            features_bfnd[media.rows_m] = features_mfnd.to(dtype)
            valid_b[media.rows_m] = True
        return features_bfnd.flatten(1, 2), sentences_of(batch, self.spec.max_text), valid_b

    @torch.no_grad()
    def _encode(self, input_values: Tensor) -> Tensor:
        """Return features (m, f, n, d) of media (m, f, *shape)."""
        return encode_segments(
            self.encoder, input_values, jointly=self.branch.encoder.encodes_jointly
        )

    def _with_dec(self, text: TextIds) -> TextIds:
        """Return the texts with `[DEC]`, the last id of BLIP-2's vocabulary, instead of `[CLS]`."""
        ids_bl = text.ids_bl.clone()
        ids_bl[:, 0] = self.projector.spec.vocabulary - 1
        return TextIds(ids_bl=ids_bl, mask_bl=text.mask_bl)

    def _tokens_and_prompts(
        self, queries_xqw: Tensor, text: TextIds, valid_b: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the pairs' projected tokens and the reference's prompts, if there is one."""
        if self.reference is None:
            return None, None
        with torch.no_grad():
            prompts_bku = self.reference(text)
        return self.projector.head(queries_xqw), prompts_bku[valid_b]


def _concatenate(*texts: TextIds) -> TextIds:
    return TextIds(
        ids_bl=torch.cat([text.ids_bl for text in texts]),
        mask_bl=torch.cat([text.mask_bl for text in texts]),
    )
