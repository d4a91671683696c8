"""The components of a generator: their classes and sizes, with published or random weights.

Names are those of the folders of a diffusers checkpoint. Classes are diffusers' and transformers'
own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    ClapTextModelWithProjection,
    CLIPTextModel,
    CLIPVisionModelWithProjection,
    GPT2Model,
    PreTrainedModel,
    SpeechT5HifiGan,
    T5EncoderModel,
)

from model.spec import SpecError
from model.spec.generators import (
    AudioLdm,
    AudioLdm2,
    GeneratorSpec,
    SoundDiffusion,
    StableDiffusion,
    TextToVideo,
    UnClip,
)
from model.weights import IRRELEVANT, Weights, load_transformers

LATENT = ("vae", "unet")
"""The components that eq. 5 and sampling need, besides those of the conditions."""
VOCODER = "vocoder"
_RATES, _KERNELS = (5, 4, 2, 2, 2), (16, 16, 8, 4, 4)
"""HiFi-GAN's upsampling from a frame of 10 ms to 160 samples."""
_FREE = IRRELEVANT | {"sample_size"}  # it is only the default size of what diffusers generates


class ClapText(ClapTextModelWithProjection):
    """CLAP's half for texts; AudioLDM 2's checkpoint holds the other half, which is not loaded."""

    _keys_to_ignore_on_load_unexpected = (r"^audio_", r"^logit_scale")


class Part(NamedTuple):
    """A component's class, and the fields of its configuration that the spec determines."""

    cls: Any
    sizes: Mapping[str, Any]


def parts(spec: GeneratorSpec) -> dict[str, Part]:
    """Return all components of a generator, those of the conditions first."""
    return {**_condition_parts(spec), "vae": _vae(spec), "unet": _unet(spec), **_vocoder(spec)}


def build_parts(
    spec: GeneratorSpec, names: Collection[str], *, weights: Weights, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Return the components of these names.

    Raises:
        SpecError: weights that cannot be loaded, or whose sizes differ from the spec's.
    """
    found: dict[str, nn.Module] = {}
    for name, part in parts(spec).items():
        if name not in names:
            continue
        transformer = issubclass(part.cls, PreTrainedModel)
        if weights == "random":
            new = part.cls(part.cls.config_class(**part.sizes)) if transformer else None
            # PyTorch's own `to`: diffusers' warns of float32 modules that do not exist.
            found[name] = nn.Module.to(new or part.cls(**part.sizes), dtype)
            continue
        options = {"dtype" if transformer else "torch_dtype": dtype}
        found[name] = load_transformers(part.cls, spec.weights, subfolder=name, **options)
        _check(found[name], part, f"weights {spec.weights!r}: {name}")
    return found


def _check(module: Any, part: Part, where: str) -> None:  # noqa: ANN401 -- their configurations
    """Raise SpecError where the sizes of a loaded component differ from the spec's."""
    for field in sorted(part.sizes.keys() - _FREE):
        loaded, expected = _plain(getattr(module.config, field)), _plain(part.sizes[field])
        if isinstance(loaded, int) and isinstance(expected, tuple):
            loaded = (loaded,) * len(expected)  # the same at every level
        if loaded != expected:
            raise SpecError(f"{where}.{field} is {loaded}, the preset says {expected}")


def _plain(value: object) -> object:
    """Return lists as tuples: configurations have the former, specs the latter."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _condition_parts(spec: GeneratorSpec) -> dict[str, Part]:
    """Return what makes τ(t), and what the UNet's conditions need besides."""
    if isinstance(spec, SoundDiffusion):
        found = {"text_encoder": Part(ClapText, _clap_sizes(spec))}
        return found | _prompt_parts(spec) if isinstance(spec, AudioLdm2) else found
    found = {"text_encoder": Part(CLIPTextModel, _clip_text_sizes(spec))}
    return found | _picture_parts(spec) if isinstance(spec, UnClip) else found


def _clip_text_sizes(spec: StableDiffusion | UnClip | TextToVideo) -> dict[str, Any]:
    return {
        "vocab_size": spec.text_vocabulary,
        "hidden_size": spec.text_width,
        "intermediate_size": spec.text_mlp_width,
        "num_hidden_layers": spec.text_layers,
        "num_attention_heads": spec.text_heads,
        "max_position_embeddings": spec.text_tokens,
        "hidden_act": spec.text_activation,
        "projection_dim": spec.text_width,
        "bos_token_id": spec.text_vocabulary - 2,
        "eos_token_id": spec.text_vocabulary - 1,
    }


def _clap_sizes(spec: SoundDiffusion) -> dict[str, Any]:
    return {
        "vocab_size": spec.text_vocabulary,
        "hidden_size": spec.text_width,
        "intermediate_size": spec.text_mlp_width,
        "num_hidden_layers": spec.text_layers,
        "num_attention_heads": spec.text_heads,
        "max_position_embeddings": spec.text_tokens + 2,  # RoBERTa's positions begin at 2
        "projection_dim": spec.embedding_width,
    }


def _prompt_parts(spec: AudioLdm2) -> dict[str, Part]:
    """Return AudioLDM 2's T5 and GPT-2, and the linear layers between them."""
    from diffusers import AudioLDM2ProjectionModel  # noqa: PLC0415 - see `_unet`

    t5 = {
        "vocab_size": spec.prompt_vocabulary,
        "d_model": spec.prompt_width,
        "d_ff": spec.prompt_mlp_width,
        "d_kv": spec.prompt_width // spec.prompt_heads,
        "num_layers": spec.prompt_layers,
        "num_heads": spec.prompt_heads,
        "feed_forward_proj": "gated-gelu",
    }
    widths = {
        "text_encoder_dim": spec.embedding_width,
        "text_encoder_1_dim": spec.prompt_width,
        "langauge_model_dim": spec.generator_width,  # diffusers' spelling
    }
    gpt2 = {
        "n_embd": spec.generator_width,
        "n_layer": spec.generator_layers,
        "n_head": spec.generator_heads,
    }
    return {
        "text_encoder_2": Part(T5EncoderModel, t5),
        "projection_model": Part(AudioLDM2ProjectionModel, widths),
        "language_model": Part(GPT2Model, gpt2),
    }


def _picture_parts(spec: UnClip) -> dict[str, Part]:
    """Return unCLIP's picture encoder, and mean and deviation of its embeddings."""
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer  # noqa: PLC0415

    clip = {
        "hidden_size": spec.clip_width,
        "intermediate_size": spec.clip_mlp_width,
        "num_hidden_layers": spec.clip_layers,
        "num_attention_heads": spec.clip_heads,
        "image_size": spec.clip_size,
        "patch_size": spec.clip_patch,
        "projection_dim": spec.embedding_width,
        "hidden_act": spec.text_activation,
    }
    width = {"embedding_dim": spec.embedding_width}
    return {
        "image_encoder": Part(CLIPVisionModelWithProjection, clip),
        "image_normalizer": Part(StableUnCLIPImageNormalizer, width),
    }


def _vae(spec: GeneratorSpec) -> Part:
    from diffusers import AutoencoderKL  # noqa: PLC0415 - see `_unet`

    levels = len(spec.vae_widths)
    channels = 1 if isinstance(spec, SoundDiffusion) else 3
    return Part(
        AutoencoderKL,
        {
            "in_channels": channels,
            "out_channels": channels,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "block_out_channels": spec.vae_widths,
            "layers_per_block": 2,
            "latent_channels": spec.latent_channels,
            "norm_num_groups": spec.norm_groups,
            "sample_size": max(spec.shape),
        },
    )


def _unet(spec: GeneratorSpec) -> Part:
    """Return the UNet. Sounds' attend on all levels but the first, all others' but the last."""
    # Imported here since it takes seconds, and most commands and all loader workers do not need it.
    from diffusers import (  # noqa: PLC0415
        AudioLDM2UNet2DConditionModel,
        UNet2DConditionModel,
        UNet3DConditionModel,
    )

    attending = len(spec.widths) - 1
    down, up = ["CrossAttnDownBlock2D"] * attending, ["CrossAttnUpBlock2D"] * attending
    if isinstance(spec, SoundDiffusion):
        down, up = ["DownBlock2D", *down], [*up, "UpBlock2D"]
    else:
        down, up = [*down, "DownBlock2D"], ["UpBlock2D", *up]
    sizes: dict[str, Any] = {
        "sample_size": spec.latent_shape[1],
        "in_channels": spec.latent_channels,
        "out_channels": spec.latent_channels,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "block_out_channels": spec.widths,
        "layers_per_block": spec.blocks,
        "norm_num_groups": spec.norm_groups,
    }
    if isinstance(spec, AudioLdm2):
        widths = [None, *(width for _, width in spec.streams)]  # None: attention to itself
        sizes |= {"cross_attention_dim": [widths] * len(down), "attention_head_dim": spec.heads}
        return Part(AudioLDM2UNet2DConditionModel, sizes)
    if isinstance(spec, AudioLdm):
        sizes |= {
            "cross_attention_dim": spec.widths,
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": spec.embedding_width,
            "class_embeddings_concat": True,
            "attention_head_dim": spec.heads,
        }
        return Part(UNet2DConditionModel, sizes)
    sizes["cross_attention_dim"] = spec.text_width
    if isinstance(spec, TextToVideo):
        sizes |= {
            "down_block_types": tuple(name.replace("2D", "3D") for name in down),
            "up_block_types": tuple(name.replace("2D", "3D") for name in up),
            "attention_head_dim": spec.head_width,
        }
        return Part(UNet3DConditionModel, sizes)
    # Here this is diffusers' name for the number of heads.
    sizes |= {"attention_head_dim": spec.heads, "use_linear_projection": spec.linear_projection}
    if isinstance(spec, UnClip):
        sizes |= {
            "class_embed_type": "projection",
            # The embedding, and that of its noise level.
            "projection_class_embeddings_input_dim": 2 * spec.embedding_width,
        }
    return Part(UNet2DConditionModel, sizes)


def _vocoder(spec: GeneratorSpec) -> dict[str, Part]:
    if not isinstance(spec, SoundDiffusion):
        return {}
    sizes = {
        "model_in_dim": spec.mel_bins,
        "sampling_rate": spec.sample_rate,
        "upsample_initial_channel": spec.vocoder_width,
        "upsample_rates": _RATES,
        "upsample_kernel_sizes": _KERNELS,
        "normalize_before": False,
    }
    return {VOCODER: Part(SpeechT5HifiGan, sizes)}
