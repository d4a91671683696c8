"""Stable Diffusion as a teacher: equal to diffusers, published sizes, noise from seeds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from model.generators import stable_diffusion
from model.spec import SpecError
from model.spec.output_branches import StableDiffusion

TINY = StableDiffusion().tiny()


def teacher(spec=TINY, *, denoising=True, weights="random", seed=0):
    torch.manual_seed(seed)
    made = stable_diffusion.build(spec, denoising=denoising, weights=weights, dtype=torch.float32)
    return made.eval()


def pixels(count, spec=TINY):
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (count, 40, 48, 3), dtype=np.uint8)
    return torch.stack([stable_diffusion.preprocess(spec, Image.fromarray(one)) for one in noise])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a diffusers checkpoint of Stable Diffusion with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(1)
    CLIPTextModel(stable_diffusion._text_config(TINY)).save_pretrained(folder / "text_encoder")
    AutoencoderKL(**stable_diffusion._vae_sizes(TINY)).save_pretrained(folder / "vae")
    UNet2DConditionModel(**stable_diffusion._unet_sizes(TINY)).save_pretrained(folder / "unet")
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.save_pretrained(folder / "scheduler")
    stable_diffusion.tokenizer(TINY, weights="random").save_pretrained(folder / "tokenizer")
    return folder


def test_sizes_are_stable_diffusion_1_5s():
    """859.5 M in the UNet, 123.1 M in CLIP's text encoder, 34.2 M in the autoencoder's encoder."""
    with torch.device("meta"):
        made = stable_diffusion.build(
            StableDiffusion(), denoising=True, weights="random", dtype=torch.float32
        )
    sizes = {
        name: sum(weight.numel() for weight in part.parameters())
        for name, part in made.named_children()
    }
    assert sizes == {"text": 123_060_480, "vae": 34_163_664, "unet": 859_520_964}


def test_a_checkpoint_gives_the_same_numbers_as_diffusers(checkpoint):
    """Under τ(t), with diffusers' modules combined as in its training script."""
    spec = replace(TINY, weights=str(checkpoint))
    made = teacher(spec, weights="pretrained")
    tokenizer = stable_diffusion.tokenizer(spec, weights="pretrained")
    ids = torch.tensor(
        tokenizer(["a red 7", "two digits"], padding="max_length", max_length=77)["input_ids"]
    )
    shown, seeds = pixels(2), torch.tensor([3, 4])
    text = CLIPTextModel.from_pretrained(checkpoint / "text_encoder").eval()
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae").eval()
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    with torch.no_grad():
        conditions = text(ids).last_hidden_state
        torch.testing.assert_close(made.embed(ids), conditions)
        found = made.denoise(shown, conditions, seeds)
        steps, noise = made._sample_noise(seeds, torch.device("cpu"))
        latents = vae.encode(shown / 127.5 - 1).latent_dist.mode() * vae.config.scaling_factor
        noised = DDPMScheduler.from_pretrained(checkpoint / "scheduler").add_noise(
            latents, noise, steps
        )
        wanted = unet(noised, steps, encoder_hidden_states=conditions).sample
    torch.testing.assert_close(found.noise_pred_gcyx, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.noise_target_gcyx, noise)


def test_the_target_of_v_prediction_is_the_velocity():
    spec = replace(TINY, prediction="v_prediction")
    made, shown, seeds = teacher(spec), pixels(1), torch.tensor([3])
    steps, noise = made._sample_noise(seeds, torch.device("cpu"))
    with torch.no_grad():
        found = made.denoise(shown, torch.zeros(1, *spec.condition_shape), seeds)
        latents = made.vae.encode(shown / 127.5 - 1).latent_dist.mode() * 0.18215
    kept = made.scheduler.alphas_cumprod[steps]
    # v = √ᾱ ε − √(1 − ᾱ) z (Salimans and Ho 2022, appendix D)
    wanted = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    torch.testing.assert_close(found.noise_target_gcyx, wanted, atol=1e-5, rtol=1e-4)


def test_noise_depends_on_the_medium_and_not_on_its_batch():
    made, shown = teacher(), pixels(3)
    conditions = torch.randn(3, *TINY.condition_shape)
    seeds = torch.tensor([5, 2**32 - 1, 7])
    with torch.no_grad():
        together = made.denoise(shown, conditions, seeds)
        alone = made.denoise(shown[1:2], conditions[1:2], seeds[1:2])
    assert torch.equal(together.noise_target_gcyx[1:2], alone.noise_target_gcyx)
    torch.testing.assert_close(
        together.noise_pred_gcyx[1:2], alone.noise_pred_gcyx, atol=1e-5, rtol=1e-5
    )
    assert not torch.equal(together.noise_target_gcyx[0], together.noise_target_gcyx[2])


def test_the_gradient_reaches_the_conditions():
    made = teacher().requires_grad_(False)
    conditions = torch.randn(1, *TINY.condition_shape, requires_grad=True)
    found = made.denoise(pixels(1), conditions, torch.tensor([0]))
    (found.noise_pred_gcyx - found.noise_target_gcyx).square().mean().backward()
    assert conditions.grad.abs().sum() > 0


def test_text_encoders_are_the_same_with_and_without_denoising():
    ids = torch.zeros(1, 77, dtype=torch.long)
    whole, alone = teacher(), teacher(denoising=False)
    assert (alone.vae, alone.unet) == (None, None)
    assert torch.equal(whole.embed(ids), alone.embed(ids))


def test_weights_of_another_size_are_refused(checkpoint):
    for change in ({"widths": (16, 64)}, {"vae_widths": (16, 64)}, {"text_mlp_width": 128}):
        spec = replace(TINY, weights=str(checkpoint), **change)
        with pytest.raises(SpecError, match="the preset says"):
            teacher(spec, weights="pretrained")
    spec = replace(TINY, weights=str(checkpoint), prediction="v_prediction")
    with pytest.raises(SpecError, match="predict 'epsilon', the preset says 'v_prediction'"):
        teacher(spec, weights="pretrained")


def test_missing_weights_are_a_one_line_error(tmp_path):
    spec = replace(TINY, weights=str(tmp_path / "none"))
    with pytest.raises(SpecError, match="no such folder; was it moved"):
        teacher(spec, weights="pretrained")


def test_a_picture_is_cropped_to_its_middle_square():
    picture = Image.new("RGB", (90, 30), (255, 0, 0))
    picture.paste((0, 0, 255), (30, 0, 60, 30))
    shown = stable_diffusion.preprocess(TINY, picture)
    assert shown.shape == TINY.shape
    assert shown.dtype == torch.uint8
    assert shown[2].min() == 255
