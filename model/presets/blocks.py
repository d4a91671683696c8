"""Components that several published systems share. Sizes are those of the published weights."""

from dataclasses import replace

from model.presets.templates import OPT_QA, T5_QA, VICUNA_V0, VICUNA_V1
from model.spec.backbones import T5, Llama, Opt
from model.spec.chat_template import ChatTemplate
from model.spec.high_resolution import Monkey
from model.spec.image import ClipVision, EvaClip
from model.spec.image_processor import center_crop, pad_to_square, squash
from model.spec.imagebind import ImageBind, Output, Trunk, imagebind
from model.spec.peft import Lora
from model.spec.qformer import QFormer

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The linear layers of LLaMA's attention, which LoRA adapts in many systems."""

PROJECTORS = "inputs.*.projector.*"
LORA = "backbone.*lora_*"
BACKBONE = "backbone.*"
"""Trainable patterns over parameter names."""

CLIP_TOWER = (
    "inputs.*.encoder.tower.embeddings.p*",
    "inputs.*.encoder.tower.pre_layrnorm.*",
    "inputs.*.encoder.tower.encoder.layers.*",
)
"""Trainable patterns of a CLIP tower whose last layer is returned, without its class token and its
last norm, which are not used."""

BLIP_2_QFORMER = "Salesforce/blip2-flan-t5-xxl:model-00001-of-00005.safetensors"
"""BLIP-2's Q-Former for Flan-T5 XXL, which MiniGPT-4 and its successors keep frozen."""


IMAGEBIND = "imagebind_huge.pth"
"""File of the published checkpoint, which is not on the hub but on a site of its own."""


def clip_large_336() -> ClipVision:
    """Return CLIP ViT-L/14 at 336 pixels: 576 patches of width 1024 (Radford et al. 2021).

    Pictures are padded, as in LLaVA-1.5 and VILA (their `--image_aspect_ratio pad`).
    """
    return ClipVision(
        weights="openai/clip-vit-large-patch14-336",
        width=1024,
        mlp_width=4096,
        layers=24,
        heads=16,
        patch_size=14,
        processor=pad_to_square(336),
    )


def clip_large_224() -> ClipVision:
    """Return CLIP ViT-L/14 at 224 pixels: 256 patches of width 1024.

    Pictures are cropped as in CLIP and in LLaVA (whose `image_aspect_ratio` is `square`).
    """
    return replace(
        clip_large_336(), weights="openai/clip-vit-large-patch14", processor=center_crop(224)
    )


def blip_2_qformer(*, published: bool = False) -> QFormer:
    """Return BLIP-2's Q-Former with 32 queries, new or as published (Li et al. 2023, §3.1)."""
    return QFormer(weights=BLIP_2_QFORMER if published else "")


def eva_clip_448() -> EvaClip:
    """Return EVA-CLIP ViT-g/14 at 448 pixels with interpolated positions: 1024 patches."""
    return EvaClip(processor=squash(448), keep_cls=False)


def vit_bigg_448() -> ClipVision:
    """Return OpenCLIP's ViT-bigG/14 at 448 pixels, without class token: 1024 patches.

    The norms' epsilon is that of Qwen-VL's code; OpenCLIP's is 1e-5.
    """
    return ClipVision(
        weights="laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        width=1664,
        mlp_width=8192,
        layers=48,
        heads=16,
        patch_size=14,
        feature_layer=-1,
        attend_cls=False,
        hidden_act="gelu",
        norm_eps=1e-6,
        processor=squash(448),
    )


def monkey() -> Monkey:
    """Return Monkey's encoder: six tiles of 448 pixels and the whole, for Qwen-VL's resampler."""
    return Monkey(tower=vit_bigg_448())


def imagebind_of(trunk: Trunk) -> ImageBind:
    """Return a trunk of ImageBind-Huge (Girdhar et al. 2023): one token per medium."""
    return imagebind(trunk, weights=IMAGEBIND)


def imagebind_audio(
    clips: int, *, scale: float | None = None, output: Output = "embedding"
) -> ImageBind:
    """Return ImageBind-Huge's audio trunk on clips of 2 s."""
    return imagebind("audio", weights=IMAGEBIND, clips=clips, scale=scale, output=output)


def llama_7b(weights: str = "huggyllama/llama-7b", template: ChatTemplate = VICUNA_V1) -> Llama:
    """Return a 7B of the first LLaMA's sizes, as Vicuna up to v1.3 (Touvron et al. 2023)."""
    return Llama(
        weights=weights,
        vocabulary=32_000,
        width=4096,
        mlp_width=11_008,
        layers=32,
        heads=32,
        kv_heads=32,
        max_positions=2048,
        norm_eps=1e-6,
        template=template,
    )


def llama_13b(weights: str = "huggyllama/llama-13b", template: ChatTemplate = VICUNA_V1) -> Llama:
    """Return a 13B of the first LLaMA's sizes, as Vicuna up to v1.3."""
    small = llama_7b(weights, template)
    return replace(small, width=5120, mlp_width=13_824, layers=40, heads=40, kv_heads=40)


def llama_2_7b(weights: str, template: ChatTemplate) -> Llama:
    """Return a 7B of LLaMA-2's sizes, as Vicuna v1.5 (Touvron et al. 2023, *Llama 2*)."""
    return replace(llama_7b(weights, template), max_positions=4096, norm_eps=1e-5)


def llama_2_13b(weights: str, template: ChatTemplate) -> Llama:
    """Return a 13B of LLaMA-2's sizes, as Vicuna v1.5."""
    return replace(llama_13b(weights, template), max_positions=4096, norm_eps=1e-5)


def vicuna_v0_7b(template: ChatTemplate = VICUNA_V0) -> Llama:
    """Return Vicuna v0 7B, with the merged weights that MiniGPT-4 refers to."""
    return llama_7b("Vision-CAIR/vicuna-7b", template)


def vicuna_v0_13b(template: ChatTemplate = VICUNA_V0) -> Llama:
    """Return Vicuna v0 13B, with the merged weights that MiniGPT-4 refers to."""
    return llama_13b("Vision-CAIR/vicuna", template)


def vicuna_7b() -> Llama:
    """Return Vicuna v1.5 7B, with LLaMA-2's sizes (Touvron et al. 2023, table 2)."""
    return llama_2_7b("lmsys/vicuna-7b-v1.5", VICUNA_V1)


def vicuna_13b() -> Llama:
    """Return Vicuna v1.5 13B."""
    return llama_2_13b("lmsys/vicuna-13b-v1.5", VICUNA_V1)


def opt_2_7b() -> Opt:
    """Return OPT 2.7B (Zhang et al. 2022, *OPT*, table 1)."""
    return Opt(
        weights="facebook/opt-2.7b",
        width=2560,
        mlp_width=10_240,
        layers=32,
        heads=32,
        template=OPT_QA,
    )


def opt_6_7b() -> Opt:
    """Return OPT 6.7B."""
    return replace(opt_2_7b(), weights="facebook/opt-6.7b", width=4096, mlp_width=16_384)


def flan_t5_xl() -> T5:
    """Return Flan-T5 XL, 3B (Chung et al. 2022); BLIP-2 runs it with the exact GELU."""
    return T5(
        weights="google/flan-t5-xl",
        width=2048,
        mlp_width=5120,
        layers=24,
        heads=32,
        activation="gelu",
        template=T5_QA,
    )


def flan_t5_xxl() -> T5:
    """Return Flan-T5 XXL, 11B."""
    small = flan_t5_xl()
    return replace(small, weights="google/flan-t5-xxl", width=4096, mlp_width=10_240, heads=64)


def llava_lora() -> Lora:
    """Return LLaVA-1.5's published LoRA settings (haotian-liu/LLaVA, finetune_lora.sh)."""
    return Lora(rank=128, alpha=256, learning_rate=2e-4)
