"""The multimodal LLM: encoders and projectors in front of a backbone.

Shapes: b sequences, t positions, s positions of a seq2seq decoder, d width, m media of a kind,
f parts of a medium, n tokens of a part, k tokens of a medium, o positions with a target,
v vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model import packing
from model.batch import Batch
from model.features import Keep, is_trainable, media_features
from model.fusion import gated_cross_attention, visual_expert
from model.fusion.conditioning import conditioned
from model.fusion.splice import FusionError, splice
from model.parts import encode_parts, pool
from model.spec import InputBranchSpec, ModelSpec
from model.spec.fusion import GatedCrossAttention, VisualExpert
from model.text import TextIds


class MultimodalLM(nn.Module):
    """t = LLM(P_X, F_T) (survey eq. 2); knows no losses, no data and no training.

    Args:
        spec: the slots and how they share their parts.
        inputs: per modality the slot's own modules, `encoder` and `projector`. What a slot shares
            with another is there only once: DeepSpeed hooks every module it finds, and a
            module that it finds twice would be gathered twice.
        backbone: the language model.

    Attributes:
        keep: is told every feature of a medium that has a key, if anyone keeps them.
    """

    keep: Keep | None = None

    def __init__(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, Mapping[str, nn.Module]],
        backbone: PreTrainedModel,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.inputs = nn.ModuleDict({kind: nn.ModuleDict(parts) for kind, parts in inputs.items()})
        self.backbone = backbone

    def encoder(self, kind: str) -> nn.Module:
        """Return the encoder of one kind of media."""
        return self._part(self.spec.slot(kind).encoder_of or kind, "encoder")

    def projector(self, kind: str) -> nn.Module:
        """Return the input projector of one kind of media."""
        return self._part(self.spec.slot(kind).projector_of or kind, "projector")

    def _part(self, kind: str, name: str) -> nn.Module:
        branch = self.inputs[kind]
        assert isinstance(branch, nn.ModuleDict)
        return branch[name]

    def train(self, mode: bool = True) -> MultimodalLM:
        """Set the mode of all parts but frozen encoders, which never draw at random.

        So a medium's features are the same every time.
        """
        super().train(mode)
        for slot in self.spec.inputs:
            if slot.modality in self.inputs and slot.encoder_of is None:
                encoder = self.encoder(slot.modality)
                encoder.train(mode and is_trainable(encoder))
        return self

    def encode(self, kind: str, values: Tensor) -> Tensor:
        """Return the features (m, f, n, d) of media (m, f, *shape): F_X (survey eq. 1).

        A frozen encoder keeps no activations.
        """
        slot, encoder = self.spec.slot(kind), self.encoder(kind)
        with torch.set_grad_enabled(is_trainable(encoder) and torch.is_grad_enabled()):
            return encode_parts(encoder, values, whole=slot.encoder.sees_parts)

    def project(self, kind: str, features_mfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return the projected tokens (m, k, d) of media's features: P_X (survey eq. 1)."""
        slot, projector = self.spec.slot(kind), self.projector(kind)
        # Not by name: under ZeRO-3 touching a weight outside its module gathers it.
        dtype = next(projector.parameters()).dtype
        projected_mkd: Tensor = projector(pool(features_mfnd.to(dtype), slot.pool), text)
        return projected_mkd

    def media_tokens(
        self, batch: Batch, used: Collection[str] = (), encoded: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the projected tokens (m, k, d) of every kind in the batch or in `used`.

        Args:
            batch: the micro-batch.
            used: the kinds of media that any rank uses in this step. Under ZeRO-3 a module is a
                collective; a kind that is missing here runs a dummy, and none of its tokens is
                handed on (m = 0), which makes its weight zero.
            encoded: those of them that any rank has to encode, since their features are not
                known; by default all.

        Raises:
            FusionError: a kind that the model has no slot for.
        """
        unknown = (set(batch.media) | set(used)) - set(self.inputs)
        if unknown:
            raise FusionError(f"media of {sorted(unknown)}, the model takes {list(self.inputs)}")
        encoded = used if encoded is None else encoded
        device = batch.ids_bt.device
        projected: dict[str, Tensor] = {}
        # In the slots' order, present or not: collectives must come in the same order on all ranks.
        for slot in self.spec.inputs:
            kind, media = slot.modality, batch.media.get(slot.modality)
            if media is None and kind not in used:
                continue
            features_mfnd = media_features(
                slot,
                partial(self.encode, kind),
                media,
                calls=kind in encoded,
                device=device,
                keep=self.keep,
            )
            if media is None:
                projected[kind] = self.project(kind, features_mfnd, _no_text(slot, device))[:0]
            else:
                projected[kind] = self.project(kind, features_mfnd, media.text)
        return projected

    def embed(
        self, batch: Batch, projected: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the backbone's input (b, t, d), and what else its layers are to know.

        Args:
            batch: the micro-batch.
            projected: as `media_tokens` gives them.

        Raises:
            FusionError: media and places do not match, or a kind that the model has no slot for.
        """
        embeddings_btd = self.backbone.get_input_embeddings()(batch.ids_bt)
        fusion = self.spec.fusion
        if isinstance(fusion, GatedCrossAttention):
            return embeddings_btd, self._looked_at(batch, projected, embeddings_btd)
        media_mask_bt = {
            kind: batch.media[kind].media_mask_bt
            if kind in batch.media
            else torch.zeros_like(batch.ids_bt, dtype=torch.bool)
            for kind in projected
        }
        flat = {kind: tokens_mkd.flatten(0, 1) for kind, tokens_mkd in projected.items()}
        fused_btd = splice(embeddings_btd, flat, media_mask_bt)
        extra: dict[str, Tensor] = {}
        if isinstance(fusion, VisualExpert):
            places = [(media_mask_bt[kind], tokens.shape[1]) for kind, tokens in projected.items()]
            extra = visual_expert.arrange(fusion, batch.attention_bt, places)
        if self.spec.backbone.prefix_lm:
            # The context's last token already answers: it says the first word.
            last_bt = batch.context_bt & ~torch.roll(batch.context_bt, -1, 1)
            extra["context_mask"] = batch.context_bt & ~last_bt
        return fused_btd, extra

    def _looked_at(
        self, batch: Batch, projected: Mapping[str, Tensor], embeddings_btd: Tensor
    ) -> dict[str, Tensor]:
        """Return what layers of gated cross-attention look at, media of all kinds together."""
        tokens, width = self.spec.inputs[0].tokens, self.spec.projected_width
        none_nkd = embeddings_btd.new_zeros(0, tokens, width)
        no_place_n = batch.ids_bt.new_zeros(0)
        media = [batch.media[kind] for kind in projected if kind in batch.media]
        return gated_cross_attention.arrange(
            torch.cat([none_nkd, *(tokens.to(none_nkd.dtype) for tokens in projected.values())]),
            torch.cat([no_place_n, *(medium.rows_m for medium in media)]),
            torch.cat([no_place_n, *(medium.starts_m for medium in media)]),
            (batch.ids_bt.shape[0], batch.ids_bt.shape[1]),
        )

    def forward(
        self, batch: Batch, used: Collection[str] = (), encoded: Collection[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits (o, v) and the targets (o,) of all positions that have a target.

        `used` and `encoded` are as of `media_tokens`.
        """
        return self.compute_logits(batch, self.media_tokens(batch, used, encoded))

    def compute_logits(
        self, batch: Batch, projected: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return logits (o, v) and targets (o,), given the media's tokens.

        Only positions with a target pass the vocabulary's matrix: in MM-PT a picture's hundreds of
        tokens have none.
        """
        embeddings_btd, extra = self.embed(batch, projected)
        if batch.decoder_bs is None:
            hidden_btd = self.backbone_hidden_states(batch, embeddings_btd, extra)[:, :-1]
        else:
            hidden_btd = self._encode_decode(embeddings_btd, batch.attention_bt, batch.decoder_bs)
        return self.backbone.get_output_embeddings()(hidden_btd[batch.targeted]), batch.targets_m

    def backbone_hidden_states(
        self, batch: Batch, embeddings_btd: Tensor, extra: Mapping[str, Tensor]
    ) -> Tensor:
        """Return a causal backbone's last hidden states (b, t, d) of its input, see `embed`."""
        told = dict(extra) | {"attention_mask": batch.attention_bt}
        if batch.positions_bt is not None:
            told |= packing.arguments(self.backbone, batch.positions_bt)
        hidden_btd: Tensor = self.backbone.get_decoder()(
            inputs_embeds=embeddings_btd, use_cache=False, **told
        ).last_hidden_state
        return hidden_btd

    def _encode_decode(
        self, embeddings_btd: Tensor, attention_bt: Tensor, decoder_bs: Tensor
    ) -> Tensor:
        """Return what a seq2seq backbone's decoder says (b, s, d)."""
        encoded_btd = self.backbone.get_encoder()(
            inputs_embeds=embeddings_btd, attention_mask=attention_bt
        ).last_hidden_state
        hidden_bsd: Tensor = self.backbone.get_decoder()(
            input_ids=decoder_bs,
            encoder_hidden_states=encoded_btd,
            encoder_attention_mask=attention_bt,
            use_cache=False,
        ).last_hidden_state
        return hidden_bsd

    @torch.no_grad()
    def generate(self, batch: Batch, *, max_new_tokens: int, pad_id: int, end_id: int) -> Tensor:
        """Return the ids (b, ≤ max_new_tokens) that greedy decoding appends to left-padded ids."""
        embeddings_btd, extra = self.embed(batch, self.media_tokens(batch))
        with conditioned(self.backbone.get_decoder(), extra):
            ids_bt: Tensor = self.backbone.generate(
                inputs_embeds=embeddings_btd,
                attention_mask=batch.attention_bt,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=pad_id,
                eos_token_id=end_id,
            )
        # A decoder's own start is no answer.
        return ids_bt[:, 1:] if self.spec.backbone.seq2seq else ids_bt


def _no_text(slot: InputBranchSpec, device: torch.device) -> TextIds | None:
    """Return the instruction of a medium that stands for none, for projectors that read one."""
    if not slot.projector.reads_text:
        return None
    one = torch.ones(1, 1, dtype=torch.long, device=device)
    return TextIds(ids_bl=one, mask_bl=one)
