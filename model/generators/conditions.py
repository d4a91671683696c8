"""τ_X, and what the UNet is given of a condition: where the families of generators differ.

Shapes: g media, l and w tokens and width of a condition, e width of an embedding, n positions of a
text, x rows of the UNet's input: with guidance, those without a condition come before those with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoders import pictures
from model.output_projectors.streams import join_streams, split_streams
from model.spec.generators import AudioLdm, AudioLdm2, GeneratorSpec, UnClip
from model.spec.image_processor import center_crop


class Conditions(nn.Module):
    """The last hidden states of CLIP's text encoder: Stable Diffusion's and Zeroscope's.

    As in diffusers, padding is not masked.

    Args:
        spec: the sizes.
        parts: text encoder and the like, by their names in a checkpoint.
        empty_ids: of the empty caption.
    """

    def __init__(
        self, spec: GeneratorSpec, parts: Mapping[str, nn.Module], empty_ids: Sequence[int]
    ) -> None:
        super().__init__()
        self.spec = spec
        for name, part in parts.items():
            self.add_module(name, part)
        self.register_buffer("empty_ids", torch.tensor(empty_ids))

    @torch.no_grad()
    def forward(self, ids_gn: Tensor, input_values: Tensor | None = None) -> Tensor:
        """Return τ(t) (g, l, w) of captions.

        Args:
            ids_gn: padded, in the vocabulary of each tokenizer, one after the other.
            input_values: the media, for a τ of the medium; see `preprocess`.
        """
        embedded_glw: Tensor = self._text(ids_gn)
        return embedded_glw

    def _text(self, ids_gn: Tensor) -> Tensor:
        text_gnw: Tensor = self.get_submodule("text_encoder")(input_ids=ids_gn).last_hidden_state
        return text_gnw

    def _empty(self, count: int) -> Tensor:
        return self.get_buffer("empty_ids").expand(count, -1)

    def negative(self, count: int) -> Tensor:
        """Return the conditions (count, l, w) of media without a caption: τ("")."""
        embedded_glw: Tensor = self(self._empty(count))
        return embedded_glw

    def unet_inputs(self, condition_xlw: Tensor, rngs: Sequence[torch.Generator]) -> dict[str, Any]:
        """Return the UNet's keyword arguments under conditions.

        Args:
            condition_xlw: τ(t) or H.
            rngs: one per medium; with guidance, there are twice as many rows.
        """
        return {"encoder_hidden_states": condition_xlw}


class UnClipConditions(Conditions):
    """CLIP's embedding of a picture, noised as in diffusers with level 0, and the empty prompt.

    A condition of zeros is none: diffusers guides away from class labels of zeros.
    """

    spec: UnClip

    def __init__(
        self,
        spec: UnClip,
        parts: Mapping[str, nn.Module],
        empty_ids: Sequence[int],
        noising: Any,  # noqa: ANN401 -- diffusers' scheduler
    ) -> None:
        super().__init__(spec, parts, empty_ids)
        self.noising = noising

    @torch.no_grad()
    def forward(self, ids_gn: Tensor, input_values: Tensor | None = None) -> Tensor:
        """Return the embeddings (g, 1, e) of pictures; captions are not used."""
        assert input_values is not None
        side = self.spec.clip_size
        pixels_g3hw = input_values.float()
        if pixels_g3hw.shape[-1] != side:  # the middle of the picture, as bytes again
            pixels_g3hw = F.interpolate(pixels_g3hw, (side, side), mode="bicubic", antialias=True)
            pixels_g3hw = pixels_g3hw.round().clamp(0, 255)
        pixels_g3hw = pictures.normalise(pixels_g3hw.to(torch.uint8), center_crop(side))
        encoder = self.get_submodule("image_encoder")
        dtype = next(encoder.parameters()).dtype
        embeds_ge: Tensor = encoder(pixels_g3hw.to(dtype)).image_embeds
        return embeds_ge[:, None]

    def negative(self, count: int) -> Tensor:
        """Return zeros (count, 1, e)."""
        dtype = next(self.parameters()).dtype
        device = self.get_buffer("empty_ids").device
        return torch.zeros(count, *self.spec.condition_shape, dtype=dtype, device=device)

    def unet_inputs(self, condition_xlw: Tensor, rngs: Sequence[torch.Generator]) -> dict[str, Any]:
        """Return the empty prompt, and noised embeddings with that of their noise level."""
        from diffusers.models.embeddings import get_timestep_embedding  # noqa: PLC0415

        embeds_xe = condition_xlw[:, 0]
        rows, width = embeds_xe.shape
        noise = [torch.randn(1, width, generator=rng, dtype=embeds_xe.dtype) for rng in rngs]
        noise_xe = torch.cat(noise).to(embeds_xe.device).repeat(rows // len(rngs), 1)
        level_x = torch.zeros(rows, dtype=torch.long, device=embeds_xe.device)
        norm: Any = self.get_submodule("image_normalizer")
        noised_xe = self.noising.add_noise(norm.scale(embeds_xe), noise_xe, level_x)
        level_xe = get_timestep_embedding(
            level_x, width, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        labels = torch.cat([norm.unscale(noised_xe), level_xe.to(embeds_xe.dtype)], dim=1)
        given_x1 = (embeds_xe != 0).any(dim=1, keepdim=True)
        with torch.no_grad():
            prompt = self._text(self._empty(len(rngs)))
        return {
            "encoder_hidden_states": prompt.repeat(rows // len(rngs), 1, 1),
            "class_labels": torch.where(given_x1, labels, 0.0),
        }


class AudioLdmConditions(Conditions):
    """CLAP's embedding of a text, of length 1, as the UNet's class labels."""

    spec: AudioLdm

    def _text(self, ids_gn: Tensor) -> Tensor:
        return _clap(self.get_submodule("text_encoder"), ids_gn)

    def unet_inputs(self, condition_xlw: Tensor, rngs: Sequence[torch.Generator]) -> dict[str, Any]:
        """Return the embedding as class labels."""
        return {"encoder_hidden_states": None, "class_labels": condition_xlw[:, 0]}


class AudioLdm2Conditions(Conditions):
    """What GPT-2 generates from CLAP's and T5's embeddings of a text, and T5's themselves.

    In a batch diffusers pads T5's tokens before GPT-2 reads them, which moves the token after them:
    a caption's condition then depends on the others. Here it is always that of the caption alone.
    """

    spec: AudioLdm2

    def _text(self, ids_gn: Tensor) -> Tensor:
        clap_ids_gn, prompt_ids_gn = ids_gn.split(self.spec.caption_lengths, dim=1)
        clap_g1e = _clap(self.get_submodule("text_encoder"), clap_ids_gn)
        mask_gn = (prompt_ids_gn != 0).long()
        mask_gn[:, 0] = 1
        length = _longest(mask_gn)
        prompt_ids_gn, mask_gn = prompt_ids_gn[:, :length], mask_gn[:, :length]
        prompt_gnw = self.get_submodule("text_encoder_2")(
            input_ids=prompt_ids_gn, attention_mask=_mask(mask_gn)
        ).last_hidden_state
        projected = self.get_submodule("projection_model")(
            hidden_states=clap_g1e,
            hidden_states_1=prompt_gnw,
            attention_mask=mask_gn.new_ones(len(mask_gn), 1),
            attention_mask_1=mask_gn,
        )
        generated_gnw = self._generate(projected.hidden_states, projected.attention_mask)
        prompt_gnw = prompt_gnw * mask_gn[..., None]
        prompt_gnw = F.pad(prompt_gnw, (0, 0, 0, self.spec.prompt_tokens - length))
        return join_streams([generated_gnw, prompt_gnw])

    def _generate(self, states_gnw: Tensor, mask_gn: Tensor) -> Tensor:
        """Return the hidden states that GPT-2 generates after those that are not masked."""
        order_gn = mask_gn.argsort(dim=1, stable=True)  # padding first
        states_gnw = states_gnw.take_along_dim(order_gn[..., None], dim=1)
        mask_gn = mask_gn.take_along_dim(order_gn, dim=1)
        positions_gn = (mask_gn.cumsum(1) - 1).clamp(min=0)
        generated, cache = [], None
        for _ in range(self.spec.generated_tokens):
            output = self.get_submodule("language_model")(
                inputs_embeds=states_gnw,
                attention_mask=_mask(mask_gn, queries=states_gnw.shape[1]),
                position_ids=positions_gn,
                past_key_values=cache,
                use_cache=True,
            )
            cache, states_gnw = output.past_key_values, output.last_hidden_state[:, -1:]
            mask_gn = F.pad(mask_gn, (0, 1), value=1)
            positions_gn = positions_gn[:, -1:] + 1
            generated.append(states_gnw)
        return torch.cat(generated, dim=1)

    def unet_inputs(self, condition_xlw: Tensor, rngs: Sequence[torch.Generator]) -> dict[str, Any]:
        """Return both streams; a token of the second that is zero is padding."""
        generated_xnw, prompt_xnw = split_streams(condition_xlw, self.spec.streams)
        mask_xn = (prompt_xnw != 0).any(dim=-1).long()
        length = _longest(mask_xn)
        # Contiguous, as diffusers' are: views of the rows would give other last bits.
        return {
            "encoder_hidden_states": generated_xnw.contiguous(),
            "encoder_hidden_states_1": prompt_xnw[:, :length].contiguous(),
            "encoder_attention_mask_1": mask_xn[:, :length],
        }


def _clap(encoder: Any, ids_gn: Tensor) -> Tensor:  # noqa: ANN401 -- transformers' class
    """Return CLAP's embedding (g, 1, e) of texts, of length 1."""
    padding = encoder.config.pad_token_id
    found = encoder(input_ids=ids_gn, attention_mask=_mask(ids_gn.ne(padding).long()))
    return F.normalize(found.text_embeds, dim=-1)[:, None]


def _mask(mask_gn: Tensor, queries: int = 0) -> Tensor:
    """Return the mask; on the meta device (g, 1, q, n), which is not read."""
    if not mask_gn.is_meta:
        return mask_gn
    return mask_gn.bool()[:, None, None].expand(-1, -1, queries or mask_gn.shape[1], -1)


def _longest(mask_gn: Tensor) -> int:
    """Return up to which position any row is not masked; on the meta device, all."""
    if mask_gn.is_meta:
        return mask_gn.shape[1]
    last_n = mask_gn.any(dim=0).nonzero()
    return int(last_n[-1]) + 1 if len(last_n) else 1
