"""Trains the digits world's toy generators of pictures and of videos.

They are small checkpoints of Stable Diffusion's and Zeroscope's classes. Both have the same
autoencoder, as the published ones do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel
from diffusers.models.resnet import TemporalConvLayer
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from etl.digits import closeups, motion
from etl.digits.checkpoints import diffusion
from etl.digits.closeups import random_closeup
from etl.digits.generation import CAPTIONS
from etl.digits.scenes import COLOURS

SIDE = 24
"""Of pictures and frames, in pixels."""
FRAMES = 4
"""Of a video."""
LATENT_CHANNELS = 8
_LATENT_SIDE = SIDE // 4
_WIDTHS = (32, 64)
_HEADS = 4
_TEXT_WIDTH = 64
_PICTURES, _VIDEOS = 12_000, 4000


def train(folder: Path, *, autoencoder_steps: int, steps: int) -> None:
    """Train the generator of pictures, and its autoencoder on videos, too; save it to `folder`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    pictures_b3hw, captions = _pictures(rng, _PICTURES)
    videos_bf3hw, _ = _videos(rng, _VIDEOS)
    vae: Any = diffusion.autoencoder(3, LATENT_CHANNELS, (8, 16, 32))
    both = torch.cat([pictures_b3hw, videos_bf3hw[:, :2].flatten(0, 1)])
    diffusion.train_autoencoder(vae, both, steps=autoencoder_steps, batch=24)
    latents = diffusion.latents_of(vae, pictures_b3hw)
    made = _Generator(vae=vae, unet=_picture_unet(), captions=captions, tokens=7)
    _train(folder, made, latents, steps=steps, batch=96)


def train_videos(folder: Path, pictures: Path, *, steps: int) -> None:
    """Train the generator of videos with the autoencoder of `pictures`; save it to `folder`."""
    torch.manual_seed(0)
    videos_bf3hw, captions = _videos(np.random.default_rng(0), _VIDEOS)
    vae: Any = AutoencoderKL.from_pretrained(pictures / "vae").float()
    latents = diffusion.latents_of(vae, videos_bf3hw.flatten(0, 1)).unflatten(0, (-1, FRAMES))
    latents = latents.transpose(1, 2).contiguous()
    made = _Generator(vae=vae, unet=_video_unet(), captions=captions, tokens=10)
    _train(folder, made, latents, steps=steps, batch=24)


@dataclass(frozen=True, kw_only=True)
class _Generator:
    """A generator before training, and the captions of its media, of at most `tokens` tokens."""

    vae: Any
    unet: Any
    captions: Sequence[str]
    tokens: int


def _train(folder: Path, made: _Generator, latents: Tensor, *, steps: int, batch: int) -> None:
    tokenizer = diffusion.clip_tokenizer(made.captions)
    text_encoder = CLIPTextModel(_text_config(tokenizer, made.tokens))
    diffusion.train_text_encoder(
        text_encoder, tokenizer, latents, made.captions, _last_state, made.tokens
    )
    diffusion.train_denoiser(
        made.unet,
        text_encoder,
        latents,
        diffusion.padded_ids(tokenizer, made.captions, made.tokens),
        diffusion.padded_ids(tokenizer, [""], made.tokens)[0],
        conditions=_conditions,
        steps=steps,
        batch=batch,
    )
    parts = {"vae": made.vae, "unet": made.unet, "text_encoder": text_encoder}
    diffusion.save(folder, tokenizer, parts)


def _last_state(text_encoder: CLIPTextModel, ids_bn: Tensor) -> Tensor:
    """Return the hidden state (b, w) of the last end token, which has seen the whole caption."""
    states_bnw: Tensor = text_encoder(input_ids=ids_bn).last_hidden_state
    return states_bnw[:, -1]


def _conditions(text_encoder: CLIPTextModel, ids_bn: Tensor) -> dict[str, Tensor | None]:
    return {"encoder_hidden_states": text_encoder(input_ids=ids_bn).last_hidden_state}


def _text_config(tokenizer: PreTrainedTokenizerFast, tokens: int) -> CLIPTextConfig:
    size = len(tokenizer)
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokens,
        hidden_act="quick_gelu",
        projection_dim=_TEXT_WIDTH,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def _picture_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **_unet_sizes("2D", _WIDTHS), attention_head_dim=(_HEADS,) * 2, use_linear_projection=True
    )


def _video_unet() -> UNet3DConditionModel:
    """Return an untrained UNet whose temporal layers do something from the first step on.

    The published initialisation is for a UNet that can already draw pictures: the temporal
    convolutions begin as the identity.
    """
    widths = (_WIDTHS[0],) * 2
    unet = UNet3DConditionModel(**_unet_sizes("3D", widths), attention_head_dim=widths[0] // _HEADS)
    for module in unet.modules():
        if isinstance(module, TemporalConvLayer):
            nn.init.kaiming_normal_(module.conv4[-1].weight, a=3**0.5)
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return unet


def _unet_sizes(suffix: str, widths: tuple[int, int]) -> dict[str, Any]:
    return {
        "sample_size": _LATENT_SIDE,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "down_block_types": (f"CrossAttnDownBlock{suffix}", f"DownBlock{suffix}"),
        "up_block_types": (f"UpBlock{suffix}", f"CrossAttnUpBlock{suffix}"),
        "block_out_channels": widths,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": _TEXT_WIDTH,
    }


def _pictures(rng: np.random.Generator, number: int) -> tuple[Tensor, list[str]]:
    """Return close-ups (b, 3, h, w) of training scans, from -1 to 1, and their captions."""
    rendered, captions = [], []
    for _ in range(number):
        digit, colour = int(rng.integers(10)), str(rng.choice(list(COLOURS)))
        shown = random_closeup(rng, "train", digit=digit, colour=colour)
        rendered.append(closeups.render(shown))
        captions.append(CAPTIONS["image"].format(digit=digit, colour=colour))
    return _values(np.stack(rendered)), captions


def _videos(rng: np.random.Generator, number: int) -> tuple[Tensor, list[str]]:
    """Return videos (b, f, 3, h, w) of training scans, from -1 to 1, and their captions."""
    rendered, captions = [], []
    for _ in range(number):
        moving = replace(motion.random_motion(rng, "train"), crossing=True)
        frames = motion.render(moving)
        chosen = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
        rendered.append(frames[chosen])
        captions.append(CAPTIONS["video"].format(**vars(moving)))
    values = _values(np.concatenate(rendered))
    return values.unflatten(0, (number, FRAMES)), captions


def _values(pixels_bhw3: NDArray[np.uint8]) -> Tensor:
    """Return pixels at a generator's size; half precision, as there are many."""
    parts = []
    for part_bhw3 in np.array_split(pixels_bhw3, max(1, len(pixels_bhw3) // 500)):
        part_b3hw = torch.from_numpy(part_bhw3).permute(0, 3, 1, 2).float() / 127.5 - 1
        small = F.interpolate(part_b3hw, (SIDE, SIDE), mode="bicubic", antialias=True)
        parts.append(small.clamp(-1, 1).half())
    return torch.cat(parts)
