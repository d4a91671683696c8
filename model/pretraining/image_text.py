"""BLIP-2's stage 1: a Q-Former learns what a picture has to do with its caption.

Li et al. 2023, *BLIP-2* (arXiv:2301.12597), §3.2: image-text contrast (ITC), matching (ITM) and
image-grounded text generation (ITG), one pass each. Behaviour that the paper leaves open is that
of salesforce/LAVIS, `blip2_qformer.py`.

Shapes: b pairs of this rank, fillers included; g pairs of all ranks; f parts of a medium, n tokens
of an encoder, d its width; q queries, l text positions, w the Q-Former's width; m words to be
told, v vocabulary; k projected tokens, u the backbone's width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.batch import IGNORED, Batch, sentences_of
from model.features import Keep, media_features
from model.input_projectors.attention import initialise
from model.input_projectors.pformer import PromptFormer
from model.input_projectors.qformer import QFormerProjector
from model.parts import encode_parts
from model.pretraining.contrastive import (
    Space,
    Temperature,
    draw_negatives,
    first_row,
    gather,
    query_similarity,
)
from model.spec import InputBranchSpec
from model.spec.init import ImageTextInit
from model.text import TextIds


class ImageTextOutput(NamedTuple):
    """What the losses of stage 1 are made of.

    Args:
        to_texts_bg, to_images_bg: similarities over the temperature, of this rank's pictures to
            all texts, and of its texts to all pictures.
        positives_b: the index, among all, of a row's own partner.
        valid_b, valid_g: which rows stand for pairs; the others are fillers.
        matching_x2: logits of "do not match" and "match" (3b, 2).
        matches_x: 1, 0, or `IGNORED` where there is no such pair.
        words_mv, targets_m: logits and targets of the captions' words.
        tokens_xku, prompts_xku: what the projector and the reference P-Former make of each pair.
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
    """What BLIP-2's stage 1 puts onto a Q-Former; no later stage has it."""

    def __init__(self, spec: ImageTextInit, projector: QFormerProjector) -> None:
        super().__init__()
        width = projector.spec.width
        self.images = Space(width, spec.width)
        self.texts = Space(width, spec.width)
        self.temperature = Temperature(spec.temperature)
        self.match = nn.Linear(width, 2)
        initialise(self.match)
        words = projector.qformer.words
        assert words is not None  # `objectives.build` gives every such Q-Former its text half
        self.words = WordHead(words.word_embeddings)


class WordHead(nn.Module):
    """States to logits over the vocabulary, through the embeddings themselves, as BERT has it."""

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
    """A frozen encoder, one slot's Q-Former with its text half, and the heads of stage 1.

    Names of parameters are those of the multimodal LLM, so that its weights are what MM-PT takes.

    Args:
        spec: the losses' figures.
        slot: whose parts these are.
        parts: `encoder` and `projector`.
        reference: DLP's frozen P-Former, which the projected tokens are drawn to; or None.

    Attributes:
        keep: is told every feature of a medium that has a key, if anyone keeps them.
    """

    keep: Keep | None = None

    def __init__(
        self,
        spec: ImageTextInit,
        slot: InputBranchSpec,
        parts: Mapping[str, nn.Module],
        reference: PromptFormer | None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.slot = slot
        self.inputs = nn.ModuleDict({slot.modality: nn.ModuleDict(parts)})
        self.heads = Heads(spec, self.projector)
        self.reference = reference

    @property
    def encoder(self) -> nn.Module:
        """The slot's encoder."""
        branch = self.inputs[self.slot.modality]
        assert isinstance(branch, nn.ModuleDict)
        return branch["encoder"]

    @property
    def projector(self) -> QFormerProjector:
        """The slot's projector."""
        branch = self.inputs[self.slot.modality]
        assert isinstance(branch, nn.ModuleDict)
        projector = branch["projector"]
        assert isinstance(projector, QFormerProjector)  # `model.build` looks at the spec
        return projector

    def train(self, mode: bool = True) -> ImageTextModel:
        """Set the mode of all parts but the frozen encoder, which draws nothing."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(
        self, batch: Batch, used: Collection[str] = (), encoded: Collection[str] | None = None
    ) -> ImageTextOutput:
        """Return what the losses need of one micro-batch; a collective.

        Args:
            batch: at most one medium in each row, and its caption in `sentences`. Every rank has
                as many rows; those without a medium are fillers, which take part in the
                collectives and in no loss.
            used: the media of all ranks.
            encoded: those of them that any rank has to encode; by default all.
        """
        features_bnd, text, valid_b = self._pairs(batch, used if encoded is None else encoded)
        qformer = self.projector.qformer
        # Under the causal mask queries see queries alone: their half of ITG's pass is ITC's.
        queries_bqw, told_blw = qformer.joint(features_bnd, self._begun(text), causal=True)
        images_bqe = self.heads.images(queries_bqw)
        texts_be = self.heads.texts(qformer.read_text(text)[:, 0])
        to_texts_bg = query_similarity(images_bqe, gather(texts_be))
        to_images_bg = query_similarity(gather(images_bqe), texts_be).T
        temperature = self.heads.temperature
        to_texts_bg, to_images_bg = temperature(to_texts_bg), temperature(to_images_bg)
        positives_b = torch.arange(len(valid_b), device=valid_b.device) + first_row(valid_b)
        valid_g = gather(valid_b.long()).bool()

        drawn_images_b, found_b = draw_negatives(to_images_bg, positives_b, valid_g)
        drawn_texts_b, _ = draw_negatives(to_texts_bg, positives_b, valid_g)
        others = TextIds(
            ids_bl=gather(text.ids_bl)[drawn_texts_b], mask_bl=gather(text.mask_bl)[drawn_texts_b]
        )
        other_features_bnd = gather(features_bnd)[drawn_images_b]
        pairs_xqw, _ = qformer.joint(
            torch.cat([features_bnd, other_features_bnd, features_bnd]),
            _concatenate(text, text, others),
        )
        wrong_b = torch.where(valid_b & found_b, 0, IGNORED)
        targeted_bl = text.mask_bl[:, 1:].bool() & valid_b[:, None]
        tokens_xku, prompts_xku = self._aligned(queries_bqw[valid_b], text, valid_b)
        return ImageTextOutput(
            to_texts_bg=to_texts_bg,
            to_images_bg=to_images_bg,
            positives_b=positives_b,
            valid_b=valid_b,
            valid_g=valid_g,
            matching_x2=self.heads.match(pairs_xqw).mean(1),
            matches_x=torch.cat([torch.where(valid_b, 1, IGNORED), wrong_b, wrong_b]),
            words_mv=self.heads.words(told_blw[:, :-1][targeted_bl]),
            targets_m=text.ids_bl[:, 1:][targeted_bl],
            tokens_xku=tokens_xku,
            prompts_xku=prompts_xku,
        )

    def _pairs(self, batch: Batch, encoded: Collection[str]) -> tuple[Tensor, TextIds, Tensor]:
        """Return features (b, f·n, d), captions (b, l) and which rows are pairs (b,).

        The parts of a medium are read at once. Rows without one see zeros.
        """
        rows, device = len(batch.ids_bt), batch.ids_bt.device
        kind, media = self.slot.modality, batch.media.get(self.slot.modality)
        features_mfnd = media_features(
            self.slot, self._encode, media, calls=kind in encoded, device=device, keep=self.keep
        )
        # Not by name: under ZeRO-3 touching a weight outside its module gathers it.
        dtype = next(self.projector.parameters()).dtype
        features_bfnd = features_mfnd.new_zeros(rows, *features_mfnd.shape[1:], dtype=dtype)
        valid_b = torch.zeros(rows, dtype=torch.bool, device=device)
        if media is not None:
            features_bfnd[media.rows_m] = features_mfnd.to(dtype)
            valid_b[media.rows_m] = True
        return features_bfnd.flatten(1, 2), sentences_of(batch, self.spec.max_text), valid_b

    @torch.no_grad()
    def _encode(self, values: Tensor) -> Tensor:
        """Return features (m, f, n, d) of media (m, f, *shape)."""
        return encode_parts(self.encoder, values, whole=self.slot.encoder.sees_parts)

    def _begun(self, text: TextIds) -> TextIds:
        """Return the texts with `[DEC]`, BLIP-2's own last word, in the place of `[CLS]`."""
        ids_bl = text.ids_bl.clone()
        ids_bl[:, 0] = self.projector.spec.vocabulary - 1
        return TextIds(ids_bl=ids_bl, mask_bl=text.mask_bl)

    def _aligned(
        self, queries_xqw: Tensor, text: TextIds, valid_b: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the projected tokens of the pairs and the reference's prompts, if there is one."""
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
