"""What the digits world's toy generators have in common: training of latent diffusion models.

First an autoencoder learns to reconstruct media, and a text encoder to match captions with them;
then a UNet learns to denoise latents under captions (Rombach et al. 2022). Saved are diffusers'
checkpoints, in float16 to halve their size.

Shapes: b media, c channels, hw sides, x values of a medium; t captions, n positions of a caption, w
width of its embedding.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

SCHEDULE: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Stable Diffusion's noise schedule; v is predicted, since few steps then suffice."""

_KL_WEIGHT = 1e-5
_NO_CAPTION = 0.1
"""Share of the media without a caption, for classifier-free guidance."""
_CONTRASTED = 64
"""Media in a step of the text encoder."""
_SHARPNESS = 10.0
"""Inverse temperature of its contrast."""
_AVERAGE = 0.995
"""Decay of the weights' moving average, which is what is saved."""


def autoencoder(channels: int, latent_channels: int, widths: Sequence[int]) -> AutoencoderKL:
    """Return a new autoencoder, each level of which but the last halves the sides."""
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=2,
        latent_channels=latent_channels,
        norm_num_groups=8,
    )


def train_autoencoder(
    vae: Any,  # noqa: ANN401 -- diffusers' class
    media_bchw: Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float = 3e-3,
) -> None:
    """Minimise squared error and a little KL divergence; sets the latents' scaling factor."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        chosen_bchw = media_bchw[torch.randint(len(media_bchw), (batch,))].float()
        posterior = vae.encode(chosen_bchw).latent_dist
        error = (vae.decode(posterior.sample()).sample - chosen_bchw).square().mean()
        loss = error + _KL_WEIGHT * posterior.kl().mean() / chosen_bchw[0].numel()
        optimizer_step(loss, list(vae.parameters()), optimizer, schedule)
        if step % 100 == 0 or step == steps - 1:
            log.info("autoencoder step %d: squared error %.4f", step, error.item())
    scaling = 1 / float(_encode(vae, media_bchw[:1000].float()).std())
    vae.register_to_config(scaling_factor=scaling)


@torch.no_grad()
def _encode(vae: Any, media_bchw: Tensor) -> Tensor:  # noqa: ANN401 -- diffusers' class
    return torch.cat([vae.encode(part).latent_dist.mode() for part in media_bchw.split(250)])


def latents_of(vae: Any, media_bchw: Tensor) -> Tensor:  # noqa: ANN401 -- diffusers' class
    """Return the latents of media, scaled to unit deviation, as the UNet has them."""
    return _encode(vae, media_bchw.float()) * float(vae.config.scaling_factor)


def train_text_encoder(
    text_encoder: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    media: Tensor,
    captions: Sequence[str],
    embed: Callable[[Any, Tensor], Tensor],
    tokens: int,
    *,
    steps: int = 300,
) -> None:
    """Match captions with media by contrast, as CLIP does (Radford et al. 2021), and freeze it.

    A text encoder that learns with the UNet alone soon maps all captions to the same embedding,
    since the UNet has no use for them at first.

    Args:
        text_encoder: of captions.
        tokenizer: of captions.
        media: all media (b, …), or their latents, which a linear layer embeds.
        captions: of the media.
        embed: maps the text encoder and ids to one embedding (b, w) each.
        tokens: length of padded captions.
        steps: of the optimizer.
    """
    texts = sorted(set(captions))
    ids_tn = padded_ids(tokenizer, texts, tokens)
    labels_b = torch.tensor([texts.index(caption) for caption in captions])
    media_bx = ((media - media.mean()) / media.std()).flatten(1)
    linear = nn.Linear(media_bx.shape[1], embed(text_encoder, ids_tn).shape[1])
    optimizer = torch.optim.AdamW([*text_encoder.parameters(), *linear.parameters()], lr=1e-3)
    for step in range(steps):
        chosen = torch.randint(len(media_bx), (_CONTRASTED,))
        media_bw = F.normalize(linear(media_bx[chosen]), dim=-1)
        texts_tw = F.normalize(embed(text_encoder, ids_tn), dim=-1)
        loss = F.cross_entropy(_SHARPNESS * media_bw @ texts_tw.T, labels_b[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            log.info("text encoder step %d: loss %.4f", step, loss.item())
    text_encoder.eval().requires_grad_(requires_grad=False)


def train_denoiser(
    unet: Any,  # noqa: ANN401 -- diffusers' classes
    text_encoder: nn.Module,
    latents: Tensor,
    ids_bn: Tensor,
    empty_n: Tensor,
    *,
    conditions: Callable[[Any, Tensor], dict[str, Tensor | None]],
    steps: int,
    batch: int,
    learning_rate: float = 2e-3,
) -> None:
    """Minimise the squared error of v under the captions' embeddings (survey eq. 5).

    Args:
        unet: predicts v.
        text_encoder: trained together with it, as far as its parameters require gradients.
        latents: of all media.
        ids_bn: of their captions.
        empty_n: of the empty caption.
        conditions: maps the text encoder and ids to the UNet's keyword arguments.
        steps: of the optimizer.
        batch: media in a step.
        learning_rate: the peak.
    """
    modules = nn.ModuleList([unet, text_encoder])
    average = copy.deepcopy(modules)
    noising = DDPMScheduler.from_config(dict(SCHEDULE))
    trained = [(name, p) for name, p in modules.named_parameters() if p.requires_grad]
    parameters = [parameter for _, parameter in trained]
    means = [average.get_parameter(name) for name, _ in trained]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        chosen = torch.randint(len(latents), (batch,))
        ids = torch.where(torch.rand(batch, 1) < _NO_CAPTION, empty_n, ids_bn[chosen])
        noise = torch.randn_like(latents[chosen])
        times = torch.randint(noising.config.num_train_timesteps, (batch,))
        noised = noising.add_noise(latents[chosen], noise, times)
        target = noising.get_velocity(latents[chosen], noise, times)
        predicted = unet(noised, times, **conditions(text_encoder, ids)).sample
        loss = (predicted - target).square().mean()
        optimizer_step(loss, parameters, optimizer, schedule)
        decay = min(_AVERAGE, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, parameter in zip(means, parameters, strict=True):
                mean.lerp_(parameter, 1 - decay)
        if step % 100 == 0 or step == steps - 1:
            log.info("denoiser step %d: loss %.4f", step, loss.item())
    modules.load_state_dict(average.state_dict())


def optimizer_step(
    loss: Tensor,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: OneCycleLR,
) -> None:
    """Do one step, with the gradient's norm clipped at 1."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


def clip_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token per word, and CLIP's start and end; the end also pads."""
    names = ("<|startoftext|>", "<|endoftext|>")
    words = ("<unk>", *_words(captions), *names)
    return _tokenizer(words, names, pad=names[1])


def roberta_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token per word, and RoBERTa's special tokens at its ids."""
    words = ("<s>", "<pad>", "</s>", "<unk>", *_words(captions))
    return _tokenizer(words, ("<s>", "</s>"), pad="<pad>")


def _words(captions: Iterable[str]) -> list[str]:
    split = pre_tokenizers.Whitespace().pre_tokenize_str
    return sorted({word for caption in captions for word, _ in split(caption)})


def _tokenizer(words: Sequence[str], ends: tuple[str, str], pad: str) -> PreTrainedTokenizerFast:
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}", special_tokens=[(name, ids[name]) for name in ends]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=ends[0],
        eos_token=ends[1],
        pad_token=pad,
        unk_token="<unk>",
    )


def padded_ids(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str], length: int) -> Tensor:
    """Return the ids (b, n) of captions, cut or padded to `length`."""
    encoded = tokenizer(list(captions), truncation=True, padding="max_length", max_length=length)
    return torch.tensor(encoded["input_ids"])


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, parts: Mapping[str, Any]) -> None:
    """Save a generator as diffusers has it: a folder for each component."""
    for name, part in parts.items():
        copy.deepcopy(part).half().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler.from_config(dict(SCHEDULE)).save_pretrained(folder / "scheduler")
