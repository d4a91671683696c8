"""Generators equal diffusers' own pipelines, loaded from the same folder, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from model.generators import latent_diffusion
from model.presets.generators import stable_diffusion_2_1
from model.spec import SpecError
from model.spec.generators import AudioLdm, AudioLdm2, StableDiffusion, TextToVideo, UnClip
from tests.model.generators import pipelines

TINY = StableDiffusion().tiny()
SPECS = {
    "stable_diffusion": TINY,
    "stable_diffusion_2_1": stable_diffusion_2_1().tiny(),
    "unclip": UnClip().tiny(),
    "text_to_video": TextToVideo().tiny(),
    "audioldm": AudioLdm().tiny(),
    "audioldm2": AudioLdm2().tiny(),
}
CAPTIONS = ["a red 7", "a big 8"]  # of the same length, see `test_a_caption_…`
STEPS, SCALE = 3, 4.0


def built(spec, *, denoising=True, decoding=False, weights="random", seed=0):
    torch.manual_seed(seed)
    made = latent_diffusion.build(
        spec, denoising=denoising, decoding=decoding, weights=weights, dtype=torch.float32
    )
    return made.eval()


def ids_of(spec, captions, weights="random"):
    tokenizers = latent_diffusion.tokenizers(spec, weights=weights)
    return torch.tensor([latent_diffusion.caption_ids(spec, tokenizers, c) for c in captions])


def pictures(count, size=(48, 40)):
    draw = np.random.default_rng(0)
    shape = (count, size[1], size[0], 3)
    return [Image.fromarray(each) for each in draw.integers(0, 256, shape, dtype=np.uint8)]


def targets(spec, count):
    """Return the targets of random media, as `preprocess` makes them."""
    if "audio" in spec.media:
        draw = np.random.default_rng(0)
        raw = list(draw.normal(size=(count, 3000)).astype(np.float32))
    elif "video" in spec.media:
        raw = [pictures(spec.frames) for _ in range(count)]
    else:
        raw = pictures(count)
    return torch.stack([latent_diffusion.preprocess(spec, medium) for medium in raw])


def rngs(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module", params=SPECS)
def both(request, tmp_path_factory):
    """Return diffusers' pipeline and ours, both loaded from the same folder."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    made = getattr(pipelines, request.param)()
    for name, module in made.components.items():  # initial values could hide errors
        if isinstance(module, torch.nn.Module):
            for weight in module.parameters():
                weight.data += (0.3 if name == "vocoder" else 0.02) * torch.randn_like(weight)
    made.save_pretrained(folder)
    pipe = type(made).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    spec = replace(SPECS[request.param], weights=str(folder))
    ours = built(spec, decoding=True, weights="pretrained")
    # Read from a file they begin at any byte, and MKL's last bits depend on the alignment.
    for module in (ours, *pipe.components.values()):
        for weight in module.parameters() if isinstance(module, torch.nn.Module) else ():
            weight.data = weight.data.clone()
    return pipe, ours


def condition_arguments(pipe, spec, captions):
    """Return the pipeline's own encoding of prompts, or of pictures, by its arguments' names."""
    if spec.kind == "unclip":
        shown = targets(spec, len(captions))
        shown = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in shown]
        if spec.image_size != spec.clip_size:
            shown = [each.resize((spec.clip_size,) * 2, Image.Resampling.BICUBIC) for each in shown]
        values = pipe.feature_extractor(shown, return_tensors="pt").pixel_values
        return {"image_embeds": pipe.image_encoder(values).image_embeds}
    if spec.kind == "audioldm":
        return {"prompt_embeds": pipe._encode_prompt(captions, "cpu", 1, False)}
    found = pipe.encode_prompt(captions, "cpu", 1, False)
    if spec.kind == "audioldm2":
        names = ("prompt_embeds", "attention_mask", "generated_prompt_embeds")
        return dict(zip(names, found, strict=True))
    return {"prompt_embeds": found[0]}


@torch.no_grad()
def condition_of(pipe, spec, captions):
    """Return the same as one tensor (g, l, w)."""
    found = condition_arguments(pipe, spec, captions)
    if spec.kind == "unclip":
        return found["image_embeds"][:, None]
    if spec.kind == "audioldm":
        return found["prompt_embeds"][:, None]
    if spec.kind == "audioldm2":
        prompt = found["prompt_embeds"]
        prompt = torch.nn.functional.pad(prompt, (0, 0, 0, spec.prompt_tokens - prompt.shape[1]))
        return torch.cat([found["generated_prompt_embeds"].flatten(1), prompt.flatten(1)], 1)[
            :, None
        ]
    return found["prompt_embeds"]


def test_the_condition_is_the_pipelines_own(both):
    pipe, made = both
    found = made.embed(ids_of(made.spec, CAPTIONS, "pretrained"), targets(made.spec, 2))
    assert found.shape == (2, *made.spec.condition_shape)
    if made.spec.kind == "audioldm":
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 1))
    if made.spec.kind == "unclip":
        # diffusers' CLIP resizes a picture with Pillow, we resize it on its device.
        torch.testing.assert_close(
            found, condition_of(pipe, made.spec, CAPTIONS), atol=0.02, rtol=0.02
        )
        small = replace(made.spec, image_size=made.spec.clip_size)
        made.text.spec, spec = small, made.spec
        found = made.embed(ids_of(small, CAPTIONS, "pretrained"), targets(small, 2))
        made.text.spec = spec
        assert torch.equal(found, condition_of(pipe, small, CAPTIONS))
        return
    assert torch.equal(found, condition_of(pipe, made.spec, CAPTIONS))


@torch.no_grad()
def test_one_loss_of_eq_5_is_that_of_the_pipelines_modules(both):
    pipe, made = both
    spec, seeds = made.spec, torch.tensor([3, 4])
    values, condition = targets(spec, 2), condition_of(pipe, spec, CAPTIONS)
    found = made.denoise(made.encode(values), condition, seeds)
    draws = rngs(seeds.tolist())
    steps, noise = made._sample_noise(draws, torch.device("cpu"))
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    if spec.media != ("audio",):
        values = values / 255.0 * 2 - 1
    if spec.kind == "text_to_video":
        values = values.flatten(0, 1)
    latents = pipe.vae.encode(values).latent_dist.mode() * pipe.vae.config.scaling_factor
    if spec.kind == "text_to_video":
        latents = latents.reshape(2, spec.frames, *latents.shape[1:]).permute(0, 2, 1, 3, 4)
    noised = scheduler.add_noise(latents, noise, steps)
    wanted = pipe.unet(noised, steps, **unet_arguments(pipe, spec, draws)).sample
    target = noise
    if spec.prediction == "v_prediction":
        target = scheduler.get_velocity(latents, noise, steps)
    assert pipe.scheduler.config.prediction_type == spec.prediction
    assert torch.equal(found.noise_target_gcyx, target)
    assert torch.equal(found.noise_pred_gcyx, wanted)
    losses = [(a - b).square().mean() for a, b in ((wanted, target), found)]
    assert torch.equal(*losses)
    assert losses[0] > 0


def unet_arguments(pipe, spec, draws):
    found = condition_arguments(pipe, spec, CAPTIONS)
    if spec.kind == "audioldm":
        return {"encoder_hidden_states": None, "class_labels": found["prompt_embeds"]}
    if spec.kind == "audioldm2":
        return {
            "encoder_hidden_states": found["generated_prompt_embeds"],
            "encoder_hidden_states_1": found["prompt_embeds"],
            "encoder_attention_mask_1": found["attention_mask"],
        }
    if spec.kind == "unclip":
        noise = torch.cat([torch.randn(1, spec.embedding_width, generator=each) for each in draws])
        labels = pipe.noise_image_embeddings(found["image_embeds"], 0, noise)
        prompt = pipe.encode_prompt(["", ""], "cpu", 1, False)[0]
        return {"encoder_hidden_states": prompt, "class_labels": labels}
    return {"encoder_hidden_states": found["prompt_embeds"]}


@pytest.mark.parametrize("scale", [1.0, SCALE])
@torch.no_grad()  # with gradients attention takes another path, of other last bits
def test_what_is_drawn_is_what_the_pipeline_draws(both, scale):
    pipe, made = both
    spec, seeds = made.spec, [5, 2**32 - 1]
    options = {"num_inference_steps": STEPS, "guidance_scale": scale, "generator": rngs(seeds)}
    if spec.kind == "text_to_video":
        options |= {"height": spec.height, "width": spec.width, "num_frames": spec.frames}
    if "audio" not in spec.media:
        options["output_type"] = "pt"
    if spec.kind == "unclip":
        options |= {"prompt": ["", ""], **condition_arguments(pipe, spec, CAPTIONS)}
    elif spec.kind == "audioldm2":
        options |= audioldm2_arguments(pipe, guided=scale > 1)
    else:
        options["prompt"] = CAPTIONS
    wanted = pipe(**options)[0]
    seen = []
    found = made.sample(
        condition_of(pipe, spec, CAPTIONS),
        seeds=seeds,
        steps=STEPS,
        guidance_scale=scale,
        on_step=lambda done, total: seen.append((done, total)),
    )
    total = len(pipe.scheduler.timesteps)
    assert seen == [(number, total) for number in range(1, total + 1)]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.as_tensor(wanted), atol=0, rtol=0)
    assert found.std() > 0.02


def audioldm2_arguments(pipe, *, guided):
    """Return prompts and negative prompts, each encoded alone: in a batch diffusers pads the latter
    to the former's length before GPT-2 reads them.
    """
    spec = SPECS["audioldm2"]
    found = condition_arguments(pipe, spec, CAPTIONS)
    if guided:
        empty = condition_arguments(pipe, spec, ["", ""])
        pad = found["prompt_embeds"].shape[1] - empty["prompt_embeds"].shape[1]
        padding = {"prompt_embeds": (0, 0, 0, pad), "attention_mask": (0, pad)}
        for name, tensor in empty.items():
            found[f"negative_{name}"] = torch.nn.functional.pad(tensor, padding.get(name, ()))
    return found


def test_a_caption_has_the_same_condition_in_any_batch(both):
    _, made = both
    ids = ids_of(made.spec, ["a", "a long red 7 and 8"], "pretrained")
    values = targets(made.spec, 2)
    together, alone = made.embed(ids, values), made.embed(ids[:1], values[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)
    assert not torch.equal(together[0], together[1])


def test_a_medium_is_drawn_alike_in_any_batch(both):
    _, made = both
    conditions = torch.randn(2, *made.spec.condition_shape)
    options = {"steps": 2, "guidance_scale": SCALE}
    together = made.sample(conditions, seeds=[1, 2], **options)
    alone = made.sample(conditions[1:], seeds=[2], **options)
    other = made.sample(conditions[1:], seeds=[3], **options)
    # The vocoder's random weights enlarge rounding errors.
    assert (together[1:] - alone).abs().max() < 0.05 * (alone - other).abs().max()


def test_the_gradient_reaches_the_conditions(both):
    """With recomputation bit for bit the same, of fewer saved tensors and more forward passes."""
    _, made = both
    made.requires_grad_(False)
    latents = made.encode(targets(made.spec, 2))
    given = torch.randn(2, *made.spec.condition_shape)
    found, calls, saved = [], [], []
    layer = made.recomputed_layers()[-1]
    inner = next(part for part in layer.children() if not isinstance(part, torch.nn.ModuleList))
    hook = inner.register_forward_hook(lambda *_: calls.append(1))
    for recompute in (False, True):
        made.set_recompute(recompute)
        conditions = given.clone().requires_grad_()
        sizes = []
        count = len(calls)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda t: t
        ):
            output = made.denoise(latents, conditions, torch.tensor([0, 1]))
        (output.noise_pred_gcyx - output.noise_target_gcyx).square().mean().backward()
        found.append((output.noise_pred_gcyx, conditions.grad))
        saved.append(sum(sizes))
        calls[count:] = [len(calls) - count]
    hook.remove()
    made.set_recompute(False)
    assert (found[0][1].flatten(1).abs().sum(1) > 0).all()
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert calls == [1, 2]
    assert saved[1] < saved[0] / 2


def test_noise_depends_on_the_medium_and_not_on_its_batch(both):
    _, made = both
    shown = targets(made.spec, 3)
    conditions = torch.randn(3, *made.spec.condition_shape)
    seeds = torch.tensor([5, 2**32 - 1, 7])
    with torch.no_grad():
        together = made.denoise(made.encode(shown), conditions, seeds)
        alone = made.denoise(made.encode(shown[1:2]), conditions[1:2], seeds[1:2])
    if made.spec.prediction == "epsilon":
        assert torch.equal(together.noise_target_gcyx[1:2], alone.noise_target_gcyx)
    torch.testing.assert_close(
        together.noise_pred_gcyx[1:2], alone.noise_pred_gcyx, atol=1e-4, rtol=1e-4
    )
    assert not torch.equal(together.noise_target_gcyx[0], together.noise_target_gcyx[2])


PUBLISHED = {
    # Without the autoencoder's decoder: 859.5 M in the UNet, 123.1 M in CLIP's text encoder.
    StableDiffusion(): {"text": 123_060_480, "vae": 34_163_664, "unet": 859_520_964},
    # 975 M in all (NExT-GPT, table 1), 739 M in the UNet (AudioLDM, table 1).
    AudioLdm(): {
        "text": 125_302_016,
        "vae": 55_376_873,
        "unet": 739_139_080,
        "vocoder": 55_264_897,
    },
}


@pytest.mark.parametrize("spec", PUBLISHED, ids=lambda spec: spec.kind)
def test_sizes_are_the_published_ones(spec):
    with torch.device("meta"):
        made = built(spec, decoding=spec.kind == "audioldm")
    sizes = {
        name: sum(weight.numel() for weight in part.parameters())
        for name, part in made.named_children()
    }
    assert sizes == PUBLISHED[spec]


@pytest.mark.parametrize("kind", SPECS)
def test_text_encoders_are_the_same_with_and_without_the_rest(kind):
    spec = SPECS[kind]
    ids, values = ids_of(spec, CAPTIONS), targets(spec, 2)
    whole, alone = built(spec), built(spec, denoising=False)
    assert (alone.vae, alone.unet, alone.vocoder) == (None, None, None)
    assert torch.equal(whole.embed(ids, values), alone.embed(ids, values))


def test_the_decoder_is_loaded_only_on_request():
    training, drawing = built(SPECS["audioldm"]), built(SPECS["audioldm"], decoding=True)
    assert not hasattr(training.vae, "decoder")
    assert training.vocoder is None
    assert drawing.vocoder is not None
    conditions = torch.randn(1, *training.spec.condition_shape)
    with pytest.raises(ValueError, match="want decoding=True"):
        training.sample(conditions, seeds=[0], steps=1, guidance_scale=1.0)
    with pytest.raises(ValueError, match="2 seeds for 1 conditions"):
        drawing.sample(conditions, seeds=[0, 1], steps=1, guidance_scale=1.0)
    alone = built(SPECS["audioldm"], denoising=False, decoding=True)
    assert not hasattr(alone.vae, "encoder")
    assert alone.sample(conditions, seeds=[0], steps=1, guidance_scale=1.0).shape == (1, 2560)


def test_the_target_of_v_prediction_is_the_velocity():
    spec = replace(TINY, prediction="v_prediction")
    made, shown, draws = built(spec), targets(spec, 1), rngs([3])
    steps, noise = made._sample_noise(draws, torch.device("cpu"))
    with torch.no_grad():
        found = made.denoise(
            made.encode(shown), torch.zeros(1, *spec.condition_shape), torch.tensor([3])
        )
        latents = made.vae.encode(shown / 127.5 - 1).latent_dist.mode() * 0.18215
    kept = made.scheduler.alphas_cumprod[steps]
    # v = √ᾱ ε − √(1 − ᾱ) z (Salimans and Ho 2022, appendix D)
    wanted = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    torch.testing.assert_close(found.noise_target_gcyx, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_limits_the_weight_of_easy_time_steps(prediction):
    """MiniGPT-5's γ is 5; its weight is min(SNR, γ) / SNR, and / (SNR + 1) where v is predicted."""
    spec = replace(TINY, prediction=prediction)
    plain, weighted = built(spec), built(replace(spec, min_snr=5.0))
    shown, seeds = targets(spec, 3), torch.tensor([0, 1, 2])
    steps, _ = plain._sample_noise(rngs(seeds.tolist()), torch.device("cpu"))
    with torch.no_grad():
        errors = [
            (found.noise_pred_gcyx - found.noise_target_gcyx).square().flatten(1).mean(1)
            for found in (
                made.denoise(made.encode(shown), torch.zeros(3, *spec.condition_shape), seeds)
                for made in (plain, weighted)
            )
        ]
    kept = plain.scheduler.alphas_cumprod[steps]
    snr = kept / (1 - kept)
    wanted = snr.clamp(max=5) / (snr + (prediction == "v_prediction"))
    assert snr.max() > 5 > snr.min()
    torch.testing.assert_close(errors[1] / errors[0], wanted)
    with pytest.raises(SpecError, match="min_snr: 0, want a positive number"):
        replace(TINY, min_snr=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    pipelines.stable_diffusion().save_pretrained(folder)
    return folder


def test_weights_of_another_size_are_refused(checkpoint):
    changes = ({"widths": (16, 64)}, {"vae_widths": (16, 64)}, {"text_mlp_width": 128})
    for change in (*changes, {"heads": (4, 4)}, {"linear_projection": True}):
        spec = replace(TINY, weights=str(checkpoint), **change)
        with pytest.raises(SpecError, match="the preset says"):
            built(spec, weights="pretrained")
    spec = replace(TINY, weights=str(checkpoint), prediction="v_prediction")
    with pytest.raises(SpecError, match="predict 'epsilon', the preset says 'v_prediction'"):
        built(spec, weights="pretrained")


def test_missing_weights_are_a_one_line_error(tmp_path):
    spec = replace(TINY, weights=str(tmp_path / "none"))
    with pytest.raises(SpecError, match="no such folder; was it moved"):
        built(spec, weights="pretrained")
