"""Latent diffusion models as frozen teachers, and as generators at inference.

One mechanism for all pipelines of diffusers in `model/spec/generators.py`: text encoder τ,
autoencoder, UNet ε, noise schedule, sampler, and for sounds a vocoder. They differ in their
components (`parts.py`), in what conditions the UNet (`conditions.py`) and in their media
(`media.py`).

Shapes: g media, l tokens and w width of the conditions, x rows of the UNet's input, … the rest of a
latent's shape.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model import byte_tokenizers
from model.generators import media
from model.generators.conditions import (
    AudioLdm2Conditions,
    AudioLdmConditions,
    Conditions,
    UnClipConditions,
)
from model.generators.parts import LATENT, VOCODER, build_parts, parts
from model.output_branch import Generator, NoisePrediction
from model.spec import SpecError
from model.spec.generators import AudioLdm, AudioLdm2, GeneratorSpec, SoundDiffusion, UnClip
from model.weights import Weights, load_transformers

preprocess = media.preprocess

_TOKENIZERS = ("tokenizer", "tokenizer_2")
_SCHEDULER, _IMAGE_NOISING = "scheduler", "image_noising_scheduler"
"""Folders of a diffusers checkpoint, besides those of the components."""


class LatentDiffusionTeacher(Generator):
    """Provides the target embeddings of eq. 4 and the noise prediction of eq. 5, and samples.

    Args:
        spec: the sizes.
        conditions: τ, and what the UNet is given of a condition.
        components: autoencoder, UNet and vocoder, as far as they are needed.
        schedule: the configuration of the checkpoint's own scheduler.
    """

    def __init__(
        self,
        spec: GeneratorSpec,
        conditions: Conditions,
        components: Mapping[str, nn.Module],
        schedule: Mapping[str, Any],
    ) -> None:
        super().__init__()
        from diffusers import DDPMScheduler  # noqa: PLC0415 - see `parts`

        self.spec = spec
        self.text = conditions
        self.vae: Any = components.get("vae")
        self.unet = components.get("unet")
        self.vocoder = components.get(VOCODER)
        self.scheduler: Any = DDPMScheduler.from_config(schedule)  # no module: it has no weights
        self._schedule = schedule

    def recomputed_layers(self) -> list[nn.Module]:
        """Return the UNet's residual and attention blocks."""
        unet: Any = self.unet
        if unet is None:
            return []
        levels = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        lists = [layers for level in levels for layers in level.children()]
        return [layer for layers in lists if isinstance(layers, nn.ModuleList) for layer in layers]

    def set_recompute(self, enabled: bool) -> None:
        """Recompute the UNet's activations in the backward pass (activation checkpointing), or not.

        diffusers' own switch does not exist for the UNet of videos.
        """
        for layer in self.recomputed_layers():
            layer.__dict__.pop("forward", None)
            if enabled:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def embed(self, ids_gl: Tensor, input_values: Tensor | None = None) -> Tensor:
        """Return τ(t) (g, l, w) of padded captions; of the media where `spec.embeds_media`."""
        embedded_glw: Tensor = self.text(ids_gl, input_values)
        return embedded_glw

    def negative(self, count: int) -> Tensor:
        """Return the conditions (count, l, w) from which guidance leads away."""
        return self.text.negative(count)

    @torch.no_grad()
    def encode(self, input_values: Tensor) -> Tensor:
        """Return the latents z₀ (g, *latent_shape), float32, of targets (g, *shape).

        They are the mean of the autoencoder's posterior, not a sample.
        """
        assert self.vae is not None
        return media.encode(self.vae, self.spec, input_values)

    def denoise(
        self, latents: Tensor, condition_embeds_glw: Tensor, seeds_g: Tensor
    ) -> NoisePrediction:
        """Add noise to latents and let the UNet predict it under the conditions.

        Time step and noise of each medium are sampled from its own seed, so they do not depend on
        rank or micro-batch. With min-SNR weighting, prediction and target are multiplied by the
        root of a medium's weight.

        Args:
            latents: see `encode`.
            condition_embeds_glw: H, with a gradient.
            seeds_g: one per medium.
        """
        assert self.unet is not None
        dtype = next(self.unet.parameters()).dtype
        rngs = [torch.Generator("cpu").manual_seed(seed) for seed in seeds_g.tolist()]
        with torch.no_grad():
            steps_g, noise = self._sample_noise(rngs, latents.device)
            noised = self.scheduler.add_noise(latents, noise, steps_g)
            noise_target = noise
            if self.spec.prediction == "v_prediction":
                noise_target = self.scheduler.get_velocity(latents, noise, steps_g)
        inputs = self.text.unet_inputs(condition_embeds_glw.to(dtype), rngs)
        noise_pred = self.unet(noised.to(dtype), steps_g, **inputs).sample
        if self.spec.min_snr is not None:
            root = self._weights(steps_g).sqrt().reshape(-1, *[1] * (noise.ndim - 1))
            noise_pred, noise_target = noise_pred * root, noise_target * root
        return NoisePrediction(noise_pred, noise_target)

    def _sample_noise(
        self, rngs: Sequence[torch.Generator], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return a time step (g,) and noise (g, …) per medium, the same on every device."""
        steps, noises = [], []
        for rng in rngs:
            timesteps = self.scheduler.config.num_train_timesteps
            steps.append(torch.randint(timesteps, (1,), generator=rng, device="cpu"))
            noises.append(torch.randn(self.spec.latent_shape, generator=rng, device="cpu"))
        return torch.cat(steps).to(device), torch.stack(noises).to(device)

    def _weights(self, steps_g: Tensor) -> Tensor:
        """Return the min-SNR-γ weights (g,) of eq. 5 (Hang et al. 2023, §3.4)."""
        kept_g = self.scheduler.alphas_cumprod.to(steps_g.device)[steps_g]
        snr_g = kept_g / (1 - kept_g)
        clamped_g = snr_g.clamp(max=self.spec.min_snr)
        return clamped_g / (snr_g + 1 if self.spec.prediction == "v_prediction" else snr_g)

    @torch.no_grad()
    def sample(
        self,
        condition_glw: Tensor,
        *,
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        negative_glw: Tensor | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw media under conditions, with the checkpoint's own scheduler, as diffusers does.

        The first noise of each medium is sampled on the CPU from its own seed, so the others in the
        batch do not change it.

        Args:
            condition_glw: H or τ(t).
            seeds: one per medium.
            steps: of denoising.
            guidance_scale: of classifier-free guidance (Ho and Salimans 2022); 1 is without.
            negative_glw: what guidance leads away from; by default `negative`.
            on_step: called after each step with the number of steps done and that of all.

        Returns:
            float32: pixels (g, 3, h, w) or, of a video, (g, frames, 3, h, w), in [0, 1]; or a
            waveform (g, samples) at the spec's sample rate.

        Raises:
            ValueError: the generator was built without `decoding`, or seeds and conditions differ
                in number.
        """
        if self.vae is None or not hasattr(self.vae, "decoder") or self.unet is None:
            raise ValueError("sample: the generator was built without decoder; want decoding=True")
        if len(seeds) != len(condition_glw):
            raise ValueError(f"sample: {len(seeds)} seeds for {len(condition_glw)} conditions")
        dtype, device = next(self.unet.parameters()).dtype, condition_glw.device
        rngs = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        guided = guidance_scale > 1
        condition_xlw = condition_glw.to(dtype)
        if guided:
            negative_glw = self.negative(len(seeds)) if negative_glw is None else negative_glw
            condition_xlw = torch.cat([negative_glw.to(condition_xlw), condition_xlw])
        inputs = self.text.unet_inputs(condition_xlw, rngs)
        sampler = self._sampler()
        sampler.set_timesteps(steps, device=device)
        shape = (1, *self.spec.latent_shape)
        first = [torch.randn(shape, generator=rng, dtype=dtype) for rng in rngs]
        latents = torch.cat(first).to(device) * sampler.init_noise_sigma
        known = inspect.signature(sampler.step).parameters
        options = {"generator": rngs} if "generator" in known else {}
        for number, step in enumerate(sampler.timesteps, start=1):
            rows = torch.cat([latents] * 2) if guided else latents
            noise = self.unet(sampler.scale_model_input(rows, step), step, **inputs).sample
            if guided:
                without, under = noise.chunk(2)
                noise = without + guidance_scale * (under - without)
            latents = sampler.step(noise, step, latents, **options).prev_sample
            if on_step is not None:
                on_step(number, len(sampler.timesteps))
        return media.decode(self.vae, self.vocoder, self.spec, latents)

    def _sampler(self) -> Any:  # noqa: ANN401 -- diffusers' class; it has a state
        import diffusers  # noqa: PLC0415 - see `parts`

        return getattr(diffusers, self._schedule["_class_name"]).from_config(self._schedule)


def build(
    spec: GeneratorSpec,
    *,
    denoising: bool,
    weights: Weights,
    dtype: torch.dtype,
    decoding: bool = False,
    encoding: bool | None = None,
) -> LatentDiffusionTeacher:
    """Return the frozen model with published or random weights.

    Args:
        spec: the sizes.
        denoising: whether the UNet is loaded for eq. 5, or only what makes τ(t).
        weights: of a diffusers checkpoint, or random.
        dtype: of all modules.
        decoding: whether it can `sample`: the autoencoder's decoder, UNet and vocoder are loaded.
        encoding: whether it can `encode`: the autoencoder's encoder is loaded; by default for
            `denoising`.

    Raises:
        SpecError: weights that cannot be loaded, or whose sizes differ from the spec's.
    """
    encoding = denoising if encoding is None else encoding
    needed = {
        "vae": encoding or decoding,
        "unet": denoising or decoding,
        VOCODER: decoding,
    }
    # The UNet's random weights do not depend on whether the autoencoder is needed.
    built = needed | {"vae": needed["vae"] or (weights == "random" and needed["unet"])}
    names = [name for name in parts(spec) if built.get(name, True)]
    found = build_parts(spec, names, weights=weights, dtype=dtype)
    found = {name: part for name, part in found.items() if needed.get(name, True)}
    vae: Any = found.get("vae")
    if vae is not None and not decoding:
        del vae.decoder, vae.post_quant_conv
    if vae is not None and not encoding:
        del vae.encoder, vae.quant_conv
    text = {name: part for name, part in found.items() if name not in (VOCODER, *LATENT)}
    conditions = _conditions(spec, text, weights)
    return LatentDiffusionTeacher(spec, conditions, found, _schedule(spec, weights))


def save(spec: GeneratorSpec, folder: Path, *, weights: Weights, dtype: torch.dtype) -> None:
    """Write a generator to a folder from which `build` and `tokenizers` read it.

    Args:
        spec: the sizes.
        folder: with a folder for each component, as in a diffusers checkpoint.
        weights: of a diffusers checkpoint, or random.
        dtype: of all modules.

    Raises:
        SpecError: weights that cannot be loaded, or whose sizes differ from the spec's.
    """
    names = [*parts(spec)]
    for name, part in build_parts(spec, names, weights=weights, dtype=dtype).items():
        cast(Any, part).save_pretrained(folder / name)
    for name, tokenizer in zip(_TOKENIZERS, tokenizers(spec, weights=weights), strict=False):
        tokenizer.save_pretrained(folder / name)
    _write_config(folder / _SCHEDULER, _schedule(spec, weights))
    if isinstance(spec, UnClip):
        _write_config(folder / _IMAGE_NOISING, _image_noising(spec, weights).config)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(config), indent=2)
    (folder / "scheduler_config.json").write_text(text)


def _conditions(
    spec: GeneratorSpec, found: Mapping[str, nn.Module], weights: Weights
) -> Conditions:
    empty = caption_ids(spec, tokenizers(spec, weights=weights), "")
    if isinstance(spec, UnClip):
        return UnClipConditions(spec, found, empty, _image_noising(spec, weights))
    if isinstance(spec, AudioLdm):
        return AudioLdmConditions(spec, found, empty)
    if isinstance(spec, AudioLdm2):
        return AudioLdm2Conditions(spec, found, empty)
    return Conditions(spec, found, empty)


def tokenizers(spec: GeneratorSpec, *, weights: Weights) -> list[PreTrainedTokenizerBase]:
    """Return the text encoders' tokenizers; with random weights, byte tokenizers."""
    if weights == "random":
        if isinstance(spec, SoundDiffusion):
            return [byte_tokenizers.roberta_style(), byte_tokenizers.t5_style()][
                : len(spec.caption_lengths)
            ]
        return [byte_tokenizers.clip_style()]
    names = _TOKENIZERS[: len(spec.caption_lengths)]
    return [load_transformers(AutoTokenizer, spec.weights, subfolder=name) for name in names]


def caption_ids(
    spec: GeneratorSpec, tokenizers: Sequence[PreTrainedTokenizerBase], text: str
) -> tuple[int, ...]:
    """Return a caption's ids, cut or padded to the length that each tokenizer's encoder reads."""
    ids: list[int] = []
    for tokenizer, length in zip(tokenizers, spec.caption_lengths, strict=True):
        ids += tokenizer(text, truncation=True, padding="max_length", max_length=length)[
            "input_ids"
        ]
    return tuple(ids)


def _schedule(spec: GeneratorSpec, weights: Weights) -> Mapping[str, Any]:
    """Return the configuration of the checkpoint's scheduler; with random weights, DDIM's."""
    from diffusers import DDIMScheduler  # noqa: PLC0415 - see `parts`

    if weights == "random":
        first, last = spec.schedule
        config = DDIMScheduler(
            beta_start=first,
            beta_end=last,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=spec.prediction,
        ).config
        return dict(config) | {"_class_name": "DDIMScheduler"}
    config = _scheduler_config(spec, _SCHEDULER)
    prediction = config.get("prediction_type", "epsilon")
    if prediction != spec.prediction:
        raise SpecError(
            f"weights {spec.weights!r}: predict {prediction!r}, the preset says {spec.prediction!r}"
        )
    return config


def _image_noising(spec: UnClip, weights: Weights) -> Any:  # noqa: ANN401 -- diffusers' class
    from diffusers import DDPMScheduler  # noqa: PLC0415 - see `parts`

    if weights == "random":
        return DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return DDPMScheduler.from_config(_scheduler_config(spec, _IMAGE_NOISING))


def _scheduler_config(spec: GeneratorSpec, folder: str) -> Mapping[str, Any]:
    from diffusers import DDPMScheduler  # noqa: PLC0415 - see `parts`

    # `from_pretrained` would return a scheduler of another class than the checkpoint's.
    loader = SimpleNamespace(from_pretrained=DDPMScheduler.load_config)
    config: Mapping[str, Any] = load_transformers(loader, spec.weights, subfolder=folder)
    return config
