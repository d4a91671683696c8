"""Stable Diffusion as a frozen teacher: text encoder τ, autoencoder and UNet ε.

Rombach et al. 2022, *High-Resolution Image Synthesis with Latent Diffusion Models*; diffusers' and
transformers' own classes. Training decodes no latents, so the autoencoder's decoder is dropped.

Shapes: g media, l text positions, w width of the conditions, c channels, hw sides in pixels,
yx sides of the latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase

from model import byte_tokenizers
from model.encoders import pictures
from model.output_branch import Generator, NoisePrediction
from model.spec import SpecError
from model.spec.image_processor import HALF, ImageProcessor, squash
from model.spec.output_branches import StableDiffusion
from model.weights import Weights, check_config, load_transformers

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel


def _processor(spec: StableDiffusion) -> ImageProcessor:
    """Return how a square picture becomes the autoencoder's input, which is in [-1, 1]."""
    return squash(spec.image_size, mean=HALF, std=HALF)


class StableDiffusionTeacher(Generator):
    """Provides the target embeddings of eq. 4 and the noise prediction of eq. 5.

    Args:
        spec: the sizes.
        text: τ.
        vae, unet: autoencoder without its decoder, and ε; None without eq. 5.
        scheduler: adds noise to latents.
    """

    def __init__(
        self,
        spec: StableDiffusion,
        text: CLIPTextModel,
        vae: AutoencoderKL | None,
        unet: UNet2DConditionModel | None,
        scheduler: DDPMScheduler,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.text = text
        self.vae = vae
        self.unet = unet
        self.scheduler = scheduler  # no module: it has no weights

    @torch.no_grad()
    def embed(self, ids_gl: Tensor) -> Tensor:
        """Return τ(t) (g, l, w) of padded texts; as in Stable Diffusion, padding is not masked."""
        embedded_glw: Tensor = self.text(input_ids=ids_gl).last_hidden_state
        return embedded_glw

    def denoise(
        self, input_values: Tensor, condition_embeds_glw: Tensor, seeds_g: Tensor
    ) -> NoisePrediction:
        """Add noise to pictures and let the UNet predict it under the conditions.

        Time step and noise of each picture are sampled from its own seed, so they do not depend on
        rank or micro-batch. Latents are the mean of the autoencoder's posterior, not a sample.

        Args:
            input_values: pixels (g, 3, h, w), uint8, see `preprocess`.
            condition_embeds_glw: H, with a gradient.
            seeds_g: one per picture.
        """
        assert self.vae is not None
        assert self.unet is not None
        dtype = next(self.unet.parameters()).dtype
        with torch.no_grad():
            pixels_g3hw = pictures.normalise(input_values, _processor(self.spec)).to(dtype)
            latents_gcyx = self.vae.encode(pixels_g3hw).latent_dist.mode().float()
            latents_gcyx = latents_gcyx * self.vae.config.scaling_factor
            steps_g, noise_gcyx = self._sample_noise(seeds_g, latents_gcyx.device)
            noised_gcyx = self.scheduler.add_noise(latents_gcyx, noise_gcyx, steps_g)
            noise_target_gcyx = noise_gcyx
            if self.spec.prediction == "v_prediction":
                noise_target_gcyx = self.scheduler.get_velocity(latents_gcyx, noise_gcyx, steps_g)
        noise_pred_gcyx = self.unet(
            noised_gcyx.to(dtype), steps_g, encoder_hidden_states=condition_embeds_glw.to(dtype)
        ).sample
        return NoisePrediction(noise_pred_gcyx, noise_target_gcyx)

    def _sample_noise(self, seeds_g: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return a time step (g,) and noise (g, c, y, x) per seed, the same on every device."""
        steps, noises = [], []
        for seed in seeds_g.tolist():
            rng = torch.Generator("cpu").manual_seed(seed)
            timesteps = self.scheduler.config.num_train_timesteps
            steps.append(torch.randint(timesteps, (1,), generator=rng, device="cpu"))
            noises.append(torch.randn(self.spec.latent_shape, generator=rng, device="cpu"))
        return torch.cat(steps).to(device), torch.stack(noises).to(device)


def build(
    spec: StableDiffusion, *, denoising: bool, weights: Weights, dtype: torch.dtype
) -> StableDiffusionTeacher:
    """Return the frozen model with published or random weights.

    Args:
        spec: the sizes.
        denoising: whether autoencoder and UNet are loaded for eq. 5, or only the text encoder.
        weights: of a diffusers checkpoint, or random.
        dtype: of all modules.

    Raises:
        SpecError: weights that cannot be loaded, or whose sizes differ from the spec's.
    """
    # Imported here since it takes seconds, and most commands and all loader workers do not need it.
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: PLC0415

    config = _text_config(spec)
    scheduler = _scheduler(spec, weights)
    if weights == "random":
        text = CLIPTextModel(config).to(dtype)
        vae = _cast(AutoencoderKL(**_vae_sizes(spec)), dtype) if denoising else None
        unet = _cast(UNet2DConditionModel(**_unet_sizes(spec)), dtype) if denoising else None
    else:
        text = _load(CLIPTextModel, spec, "text_encoder", dtype=dtype)
        check_config(text, config, spec.weights)
        vae = _load(AutoencoderKL, spec, "vae", torch_dtype=dtype) if denoising else None
        unet = _load(UNet2DConditionModel, spec, "unet", torch_dtype=dtype) if denoising else None
        _check_sizes(spec, vae, unet)
    if vae is not None:
        del vae.decoder, vae.post_quant_conv
    return StableDiffusionTeacher(spec, text, vae, unet, scheduler)


def preprocess(spec: StableDiffusion, picture: Image.Image) -> Tensor:
    """Return the pixels (3, side, side), uint8, of an RGB picture, cropped to its middle square."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    middle = picture.crop((left, top, left + side, top + side))
    return pictures.preprocess(_processor(spec), middle)[0]


def tokenizer(spec: StableDiffusion, *, weights: Weights) -> PreTrainedTokenizerBase:
    """Return the text encoder's tokenizer; with random weights, a byte tokenizer."""
    if weights == "random":
        return byte_tokenizers.clip_style()
    loaded: PreTrainedTokenizerBase = load_transformers(
        AutoTokenizer, spec.weights, subfolder="tokenizer"
    )
    return loaded


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast with PyTorch's own method: diffusers' warns of float32 modules that do not exist."""
    return nn.Module.to(module, dtype)


def _load(cls: Any, spec: StableDiffusion, part: str, **options: object) -> Any:  # noqa: ANN401
    return load_transformers(cls, spec.weights, subfolder=part, **options)


def _scheduler(spec: StableDiffusion, weights: Weights) -> DDPMScheduler:
    """Return the published noise schedule; with random weights, that of Stable Diffusion 1.5."""
    from diffusers import DDPMScheduler  # noqa: PLC0415 - see `build`

    if weights == "random":
        return DDPMScheduler(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=spec.prediction,
        )
    found = load_transformers(DDPMScheduler, spec.weights, subfolder="scheduler")
    if found.config.prediction_type != spec.prediction:
        raise SpecError(
            f"weights {spec.weights!r}: predict {found.config.prediction_type!r}, "
            f"the preset says {spec.prediction!r}"
        )
    return found


def _text_config(spec: StableDiffusion) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=spec.text_vocabulary,
        hidden_size=spec.text_width,
        intermediate_size=spec.text_mlp_width,
        num_hidden_layers=spec.text_layers,
        num_attention_heads=spec.text_heads,
        max_position_embeddings=spec.text_tokens,
        projection_dim=spec.text_width,
        bos_token_id=spec.text_vocabulary - 2,
        eos_token_id=spec.text_vocabulary - 1,
    )


def _vae_sizes(spec: StableDiffusion) -> dict[str, object]:
    levels = len(spec.vae_widths)
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": spec.vae_widths,
        "layers_per_block": 2,
        "latent_channels": spec.latent_channels,
        "norm_num_groups": spec.norm_groups,
        "sample_size": spec.image_size,
    }


def _unet_sizes(spec: StableDiffusion) -> dict[str, object]:
    with_attention = len(spec.widths) - 1
    return {
        "sample_size": spec.latent_shape[-1],
        "in_channels": spec.latent_channels,
        "out_channels": spec.latent_channels,
        "down_block_types": ("CrossAttnDownBlock2D",) * with_attention + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * with_attention,
        "block_out_channels": spec.widths,
        "layers_per_block": spec.blocks,
        "norm_num_groups": spec.norm_groups,
        "cross_attention_dim": spec.text_width,
        "attention_head_dim": spec.heads,  # diffusers' name for the number of heads
    }


def _check_sizes(
    spec: StableDiffusion, vae: AutoencoderKL | None, unet: UNet2DConditionModel | None
) -> None:
    """Raise SpecError where the sizes of loaded modules differ from the preset's."""
    for module, sizes in ((vae, _vae_sizes(spec)), (unet, _unet_sizes(spec))):
        if module is None:
            continue
        for name in ("block_out_channels", "latent_channels", "cross_attention_dim"):
            if name in sizes and _plain(module.config[name]) != _plain(sizes[name]):
                raise SpecError(
                    f"weights {spec.weights!r}: {name} is {module.config[name]}, "
                    f"the preset says {sizes[name]}"
                )


def _plain(value: object) -> object:
    """Return lists as tuples: configurations have the former, specs the latter."""
    return tuple(value) if isinstance(value, list) else value
