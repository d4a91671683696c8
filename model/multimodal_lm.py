"""The multimodal LLM: encoders and input projectors, a backbone, and output branches.

Shapes: b sequences, t positions, s positions of a seq2seq decoder, d width, m media of a kind,
f segments of a medium, n tokens of a segment, k projected tokens of a medium, o positions with a
target, v vocabulary (followed by the signal tokens, if there are output branches).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from model import packing
from model.batch import Batch, sentences_of
from model.features import is_trainable, media_features
from model.fusion import gated_cross_attention, visual_expert
from model.fusion.conditioning import inject_decoder_kwargs
from model.fusion.splice import FusionError, splice
from model.input_projectors.pformer import PromptFormer
from model.output_branch import GenerationOutput, OutputBranch, signal_hidden, with_signals
from model.segments import encode_segments, pool
from model.spec import InputBranchSpec, ModelSpec
from model.spec.fusion import GatedCrossAttention, VisualExpert
from model.text import TextIds


class Alignment(NamedTuple):
    """Projected tokens of all media, and a reference P-Former's prompts for them, each (m, k, d).

    Jian et al. 2023 (arXiv:2307.07063), §3.2.
    """

    tokens_mkd: Tensor
    prompts_mkd: Tensor


class MultimodalOutput(NamedTuple):
    """What the losses of a stage need of a micro-batch.

    Attributes:
        logits_ov, targets_o: of all positions that have a target.
        generation: results of the output branches, by kind of media.
        alignment: None without a reference.
    """

    logits_ov: Tensor
    targets_o: Tensor
    generation: Mapping[str, GenerationOutput] = MappingProxyType({})
    alignment: Alignment | None = None


class MultimodalLM(nn.Module):
    """t, S_X = LLM(P_X, F_T) (survey eq. 2) and H_X = Θ_out(S_X) (§2.4).

    Independent of losses, data and training.

    Args:
        spec: the branches and which components they share.
        inputs: per modality the branch's own modules, `encoder` and `projector`. A shared module
            appears only once: DeepSpeed hooks every module it finds, and would gather one that it
            finds twice twice.
        backbone: the language model.
        outputs: the output branch of each modality that is generated; generators are frozen.
        reference: a frozen P-Former, towards whose prompts the projected tokens may be trained.
            Each row then has one medium and its caption.
        max_text: length to which the reference's captions are truncated, in tokens.

    Attributes:
        feature_kinds: kinds of media of which all batches of all ranks give features instead of
            input values (of generated media, `to_image`: embeddings instead of captions, and
            `to_image.latents`: latents instead of media); their encoders are never called.
    """

    feature_kinds: Collection[str] = ()

    def __init__(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, Mapping[str, nn.Module]],
        backbone: PreTrainedModel,
        outputs: Mapping[str, OutputBranch] | None = None,
        reference: PromptFormer | None = None,
        max_text: int = 0,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.inputs = nn.ModuleDict({kind: nn.ModuleDict(own) for kind, own in inputs.items()})
        self.backbone = backbone
        self.outputs = nn.ModuleDict(dict(outputs or {}))
        self.reference = reference
        self._max_text = max_text

    def encoder(self, kind: str) -> nn.Module:
        """Return the encoder of one kind of media."""
        return self._component(self.spec.input_branch(kind).encoder_of or kind, "encoder")

    def projector(self, kind: str) -> nn.Module:
        """Return the input projector of one kind of media."""
        return self._component(self.spec.input_branch(kind).projector_of or kind, "projector")

    def _component(self, kind: str, name: str) -> nn.Module:
        branch = self.inputs[kind]
        assert isinstance(branch, nn.ModuleDict)
        return branch[name]

    def train(self, mode: bool = True) -> MultimodalLM:
        """Set training mode, except for frozen encoders, whose features must be deterministic."""
        super().train(mode)
        for branch in self.spec.inputs:
            if branch.modality in self.inputs and branch.encoder_of is None:
                encoder = self.encoder(branch.modality)
                encoder.train(mode and is_trainable(encoder))
        return self

    def encode(self, kind: str, input_values: Tensor) -> Tensor:
        """Return the features (m, f, n, d) of media (m, f, *shape): F_X (survey eq. 1).

        Frozen encoders run without gradients.
        """
        branch, encoder = self.spec.input_branch(kind), self.encoder(kind)
        with torch.set_grad_enabled(is_trainable(encoder) and torch.is_grad_enabled()):
            return encode_segments(encoder, input_values, jointly=branch.encoder.encodes_jointly)

    def project(self, kind: str, features_mfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return the projected tokens (m, k, d) of features: P_X (survey eq. 1)."""
        branch, projector = self.spec.input_branch(kind), self.projector(kind)
        # Not by name: under ZeRO-3, accessing a weight outside its module gathers it.
        dtype = next(projector.parameters()).dtype
        projected_mkd: Tensor = projector(pool(features_mfnd.to(dtype), branch.pool), text)
        return projected_mkd

    def media_tokens(self, batch: Batch, used: Collection[str] = ()) -> dict[str, Tensor]:
        """Return the projected tokens (m, k, d) of every kind in the batch or in `used`.

        A medium that occurs several times (`Media.order_e`) is encoded once; its tokens repeat.

        Args:
            batch: the micro-batch.
            used: the kinds of media that any rank uses in this forward pass. Under ZeRO-3 calling a
                module is a collective; for a kind that this rank lacks, a dummy is run and none of
                its tokens is returned (m = 0), which gives it zero weight.

        Raises:
            FusionError: the model has no input branch for a kind.
        """
        unknown = (set(batch.media) | set(used)) - set(self.inputs)
        if unknown:
            raise FusionError(
                f"media of {sorted(unknown)}, but the model has input branches {list(self.inputs)}"
            )
        device = batch.ids_bt.device
        projected: dict[str, Tensor] = {}
        # In the order of the branches: collectives must have the same order on all ranks.
        for branch in self.spec.inputs:
            kind, media = branch.modality, batch.media.get(branch.modality)
            if media is None and kind not in used:
                continue
            features_mfnd = media_features(
                branch,
                partial(self.encode, kind),
                media,
                given=kind in self.feature_kinds,
                device=device,
            )
            if media is None:
                projected[kind] = self.project(kind, features_mfnd, _dummy_text(branch, device))[:0]
            else:
                tokens_mkd = self.project(kind, features_mfnd, media.text)
                projected[kind] = tokens_mkd if media.order_e is None else tokens_mkd[media.order_e]
        return projected

    def embed(
        self, batch: Batch, projected: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the backbone's input (b, t, d) and keyword arguments for its decoder.

        Args:
            batch: the micro-batch.
            projected: the result of `media_tokens`.

        Raises:
            FusionError: media and their positions do not match.
        """
        embeddings_btd = self.backbone.get_input_embeddings()(batch.ids_bt)
        fusion = self.spec.fusion
        if isinstance(fusion, GatedCrossAttention):
            return embeddings_btd, self._cross_attention_kwargs(batch, projected, embeddings_btd)
        media_mask_bt = {
            kind: batch.media[kind].media_mask_bt
            if kind in batch.media
            else torch.zeros_like(batch.ids_bt, dtype=torch.bool)
            for kind in projected
        }
        flat = {kind: tokens_mkd.flatten(0, 1) for kind, tokens_mkd in projected.items()}
        fused_btd = splice(embeddings_btd, flat, media_mask_bt)
        kwargs: dict[str, Tensor] = {}
        if isinstance(fusion, VisualExpert):
            masks = [(media_mask_bt[kind], tokens.shape[1]) for kind, tokens in projected.items()]
            kwargs = visual_expert.decoder_kwargs(fusion, batch.attention_bt, masks)
        if self.spec.backbone.prefix_lm:
            # The last token of the context is no context: it predicts the first word of the answer.
            last_bt = batch.context_bt & ~torch.roll(batch.context_bt, -1, 1)
            kwargs["context_mask"] = batch.context_bt & ~last_bt
        return fused_btd, kwargs

    def fuse(self, batch: Batch, used: Collection[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the same with all media projected, and embedded signal tokens of generated ones.

        Args:
            batch: the micro-batch.
            used: kinds of media that any rank uses in this pass, see `forward`.
        """
        branches = self.output_branches()
        projected = self.media_tokens(batch, [kind for kind in used if kind not in branches])
        embeddings_btd, kwargs = self.embed(batch, projected)
        return self.embed_signals(embeddings_btd, batch), kwargs

    def embed_signals(self, embeddings_btd: Tensor, batch: Batch) -> Tensor:
        """Return the backbone's input with the embeddings of signal tokens at their positions."""
        branches = self.output_branches()
        signals = {kind: branch.signal_embeddings() for kind, branch in branches.items()}
        return with_signals(embeddings_btd, batch, signals) if branches else embeddings_btd

    def _cross_attention_kwargs(
        self, batch: Batch, projected: Mapping[str, Tensor], embeddings_btd: Tensor
    ) -> dict[str, Tensor]:
        """Return the arguments of gated cross-attention, for media of all kinds together."""
        tokens, width = self.spec.inputs[0].tokens, self.spec.projected_width
        none_nkd = embeddings_btd.new_zeros(0, tokens, width)
        none_n = batch.ids_bt.new_zeros(0)
        media = [batch.media[kind] for kind in projected if kind in batch.media]
        return gated_cross_attention.decoder_kwargs(
            torch.cat([none_nkd, *(tokens.to(none_nkd.dtype) for tokens in projected.values())]),
            torch.cat([none_n, *(medium.rows_m for medium in media)]),
            torch.cat([none_n, *(medium.starts_m for medium in media)]),
            (batch.ids_bt.shape[0], batch.ids_bt.shape[1]),
        )

    def output_branches(self) -> dict[str, OutputBranch]:
        """Return the output branches by kind (`to_image`), in the order of the spec."""
        branches = {}
        for spec in self.spec.outputs if self.outputs else ():
            branch = self.outputs[spec.modality]
            assert isinstance(branch, OutputBranch)
            branches[spec.kind] = branch
        return branches

    def forward(self, batch: Batch, used: Collection[str] = ()) -> MultimodalOutput:
        """Return what the losses need of a micro-batch.

        Args:
            batch: the micro-batch.
            used: kinds of media, input and output, that any rank has in this forward pass. Under
                ZeRO-3 calling a module is a collective; a rank without the kind runs a dummy.
        """
        branches = self.output_branches()
        projected = self.media_tokens(batch, [kind for kind in used if kind not in branches])
        alignment = self._align(batch, projected) if self.reference is not None else None
        if not branches:
            logits_ov, targets_o = self.compute_logits(batch, projected)
            return MultimodalOutput(logits_ov, targets_o, alignment=alignment)
        logits_ov, generation = self._generate_media(batch, projected, branches, used)
        return MultimodalOutput(logits_ov, batch.targets_o, generation, alignment)

    def _align(self, batch: Batch, projected: Mapping[str, Tensor]) -> Alignment:
        """Return the projected tokens beside the reference's prompts for their captions."""
        assert self.reference is not None
        with torch.no_grad():
            prompts_bkd = self.reference(sentences_of(batch, self._max_text))
        rows = {kind: media.rows_m for kind, media in batch.media.items()}
        none = batch.ids_bt.new_zeros(0)
        prompts = [prompts_bkd[rows.get(kind, none)] for kind in projected]
        return Alignment(torch.cat(list(projected.values())), torch.cat(prompts))

    def _generate_media(
        self,
        batch: Batch,
        projected: Mapping[str, Tensor],
        branches: Mapping[str, OutputBranch],
        used: Collection[str],
    ) -> tuple[Tensor, dict[str, GenerationOutput]]:
        """Return logits (o, v) over words and signal tokens, and the output branches' results."""
        embeddings_btd, kwargs = self.embed(batch, projected)
        signals = {kind: branch.signal_embeddings() for kind, branch in branches.items()}
        hidden_btd = self.backbone_hidden_states(
            batch, with_signals(embeddings_btd, batch, signals), kwargs
        )
        generation = {
            kind: branch.generation_output(
                batch.generation_targets.get(kind),
                signal_hidden(batch, branch.spec, hidden_btd, signals[kind]),
                embeds_given=kind in self.feature_kinds,
                latents_given=branch.spec.latents_kind in self.feature_kinds,
            )
            for kind, branch in branches.items()
            if kind in used or kind in batch.generation_targets
        }
        hidden_od = hidden_btd[:, :-1][batch.target_mask]
        logits_ov = self.backbone.get_output_embeddings()(hidden_od)
        signal_logits = [branch.head(hidden_od) for branch in branches.values()]
        return torch.cat([logits_ov, *signal_logits], dim=1), generation

    def compute_logits(
        self, batch: Batch, projected: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return logits (o, v) and targets (o,), given the projected tokens.

        Logits are computed at positions with a target only: in MM-PT the hundreds of tokens of a
        picture have none.
        """
        embeddings_btd, kwargs = self.embed(batch, projected)
        embeddings_btd = self.embed_signals(embeddings_btd, batch)
        if batch.decoder_bs is None:
            hidden_btd = self.backbone_hidden_states(batch, embeddings_btd, kwargs)[:, :-1]
        else:
            hidden_btd = self._encode_decode(embeddings_btd, batch.attention_bt, batch.decoder_bs)
        return self.backbone.get_output_embeddings()(hidden_btd[batch.target_mask]), batch.targets_o

    def backbone_hidden_states(
        self, batch: Batch, embeddings_btd: Tensor, kwargs: Mapping[str, Tensor]
    ) -> Tensor:
        """Return a causal backbone's last hidden states (b, t, d) for the results of `embed`."""
        decoder_kwargs = dict(kwargs) | {"attention_mask": batch.attention_bt}
        if batch.positions_bt is not None:
            decoder_kwargs |= packing.decoder_kwargs(self.backbone, batch.positions_bt)
        hidden_btd: Tensor = self.backbone.get_decoder()(
            inputs_embeds=embeddings_btd, use_cache=False, **decoder_kwargs
        ).last_hidden_state
        return hidden_btd

    def _encode_decode(
        self, embeddings_btd: Tensor, attention_bt: Tensor, decoder_bs: Tensor
    ) -> Tensor:
        """Return the last hidden states (b, s, d) of a seq2seq backbone's decoder."""
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
    def generate(
        self,
        batch: Batch,
        *,
        max_new_tokens: int,
        pad_id: int,
        end_ids: Sequence[int],
        streamer: BaseStreamer | None = None,
        stop: Sequence[StoppingCriteria] = (),
        choose: LogitsProcessor | None = None,
        used: Collection[str] = (),
        synced: bool = False,
    ) -> Tensor:
        """Return the new ids (b, ≤ max_new_tokens) of greedy decoding from left-padded prompts.

        Args:
            batch: the prompts.
            max_new_tokens: longest answer.
            pad_id: after the end of an answer.
            end_ids: of which any ends an answer.
            streamer: gets the ids of a single prompt's answer as they are generated.
            stop: say which answers are complete otherwise.
            choose: changes the logits, of which the greatest is taken.
            used: kinds of media that any rank uses in this call, see `forward`.
            synced: whether all ranks decode together and as long as any does (ZeRO-3).
        """
        embeddings_btd, kwargs = self.fuse(batch, used)  # generated media are of earlier answers
        with inject_decoder_kwargs(self.backbone.get_decoder(), kwargs):
            ids_bt: Tensor = self.backbone.generate(
                inputs_embeds=embeddings_btd,
                attention_mask=batch.attention_bt,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=pad_id,
                decoder_start_token_id=pad_id if self.spec.backbone.seq2seq else None,
                eos_token_id=list(end_ids) or None,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList(stop),
                logits_processor=LogitsProcessorList([] if choose is None else [choose]),
                synced_gpus=synced,
            )
        # A seq2seq decoder's start token is not part of the answer.
        return ids_bt[:, 1:] if self.spec.backbone.seq2seq else ids_bt


def _dummy_text(branch: InputBranchSpec, device: torch.device) -> TextIds | None:
    """Return the instruction of a dummy medium, for projectors that read one."""
    if not branch.projector.reads_text:
        return None
    one = torch.ones(1, 1, dtype=torch.long, device=device)
    return TextIds(ids_bl=one, mask_bl=one)
