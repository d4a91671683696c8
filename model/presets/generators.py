"""Published generators other than the defaults of their specs."""

from dataclasses import replace

from model.spec.generators import StableDiffusion


def stable_diffusion_2_base() -> StableDiffusion:
    """Return Stable Diffusion 2 at 512 pixels, which predicts noise.

    Its text encoder is OpenCLIP's ViT-H/14, up to the layer before the last.
    """
    return StableDiffusion(
        weights="stabilityai/stable-diffusion-2-base",
        heads=(5, 10, 20, 20),
        linear_projection=True,
        text_activation="gelu",
        text_width=1024,
        text_mlp_width=4096,
        text_layers=23,
        text_heads=16,
    )


def stable_diffusion_2() -> StableDiffusion:
    """Return Stable Diffusion 2 at 768 pixels, which predicts v."""
    return replace(
        stable_diffusion_2_base(),
        weights="stabilityai/stable-diffusion-2",
        image_size=768,
        prediction="v_prediction",
    )


def stable_diffusion_2_1_base() -> StableDiffusion:
    """Return Stable Diffusion 2.1 at 512 pixels, which predicts noise: MiniGPT-5's."""
    return replace(stable_diffusion_2_base(), weights="stabilityai/stable-diffusion-2-1-base")


def stable_diffusion_2_1() -> StableDiffusion:
    """Return Stable Diffusion 2.1 at 768 pixels, which predicts v."""
    return replace(stable_diffusion_2(), weights="stabilityai/stable-diffusion-2-1")
