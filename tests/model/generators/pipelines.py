"""Tiny pipelines of diffusers' own classes with random weights, saved as published ones are."""

import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableUnCLIPImg2ImgPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from tokenizers import pre_tokenizers
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from model import byte_tokenizers

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
AUDIOLDM = {**STABLE_DIFFUSION, "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False}
CROSS_FIRST = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
CROSS_LAST = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
VOCODER = {
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "upsample_initial_channel": 32,
    "model_in_dim": 8,
    "sampling_rate": 16_000,
    "normalize_before": False,
}


def clip_tokenizer():
    tokenizer = byte_tokenizers.clip_style()
    tokenizer.model_max_length = 77
    return tokenizer


def roberta_tokenizer():
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    symbols += sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    return RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=32)


def t5_tokenizer():
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    scores = [(piece, -float(number > 3)) for number, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=24)


def clip_text(activation):
    config = CLIPTextConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(config)


def clap_text(**options):
    return ClapTextConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=34,
        projection_dim=32,
        **options,
    )


def vae(channels=3, latents=4, scaling_factor=0.18215):
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=2,
        latent_channels=latents,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=scaling_factor,
    )


def unet(cls=UNet2DConditionModel, channels=4, size=16, **options):
    given = {"block_out_channels": (16, 32), **CROSS_FIRST, **options}
    return cls(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        **given,
    )


def stable_diffusion(
    activation="quick_gelu", scheduler=PNDMScheduler, options=None, **unet_options
):
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(activation),
        tokenizer=clip_tokenizer(),
        unet=unet(cross_attention_dim=32, attention_head_dim=2, **unet_options),
        scheduler=scheduler(**STABLE_DIFFUSION, **(options or {"skip_prk_steps": True})),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_2_1():
    return stable_diffusion(
        "gelu",
        EulerDiscreteScheduler,
        {"prediction_type": "v_prediction"},
        use_linear_projection=True,
    )


def unclip():
    image_encoder = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=24,
        hidden_act="gelu",
    )
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=24)
    torch.nn.init.normal_(normalizer.mean, std=0.1)
    torch.nn.init.uniform_(normalizer.std, 0.5, 2)
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        image_encoder=CLIPVisionModelWithProjection(image_encoder),
        image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text("gelu"),
        unet=unet(
            cross_attention_dim=32,
            attention_head_dim=(2, 2),
            use_linear_projection=True,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=48,
        ),
        scheduler=PNDMScheduler(
            **STABLE_DIFFUSION, skip_prk_steps=True, prediction_type="v_prediction"
        ),
        vae=vae(),
    )


def text_to_video():
    return TextToVideoSDPipeline(
        vae=vae(),
        text_encoder=clip_text("gelu"),
        tokenizer=clip_tokenizer(),
        unet=unet(
            UNet3DConditionModel,
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=32,
            attention_head_dim=16,
        ),
        scheduler=DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False, set_alpha_to_one=False),
    )


def audioldm():
    return AudioLDMPipeline(
        vae=vae(1, 8, 0.9),
        text_encoder=ClapTextModelWithProjection(clap_text()),
        tokenizer=roberta_tokenizer(),
        unet=unet(
            channels=8,
            size=8,
            **CROSS_LAST,
            cross_attention_dim=(16, 32),
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=32,
            class_embeddings_concat=True,
            attention_head_dim=2,
        ),
        scheduler=DDIMScheduler(**AUDIOLDM, set_alpha_to_one=False),
        vocoder=SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER)),
    )


def audioldm2():
    audio = {
        "spec_size": 64,
        "hidden_size": 16,
        "patch_embeds_hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "window_size": 4,
        "num_mel_bins": 16,
    }
    clap = ClapConfig(text_config=clap_text().to_dict(), audio_config=audio, projection_dim=32)
    t5 = T5Config(
        vocab_size=384,
        d_model=24,
        d_ff=48,
        d_kv=12,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    gpt2 = GPT2Config(vocab_size=99, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    gpt2.max_new_tokens = 3
    return AudioLDM2Pipeline(
        vae=vae(1, 8, 0.9),
        text_encoder=ClapModel(clap),
        text_encoder_2=T5EncoderModel(t5),
        projection_model=AudioLDM2ProjectionModel(32, 24, 16),
        language_model=GPT2LMHeadModel(gpt2),
        tokenizer=roberta_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        feature_extractor=ClapFeatureExtractor(),
        unet=unet(
            AudioLDM2UNet2DConditionModel,
            channels=8,
            size=8,
            **CROSS_LAST,
            cross_attention_dim=[[None, 16, 24]] * 2,
            attention_head_dim=2,
        ),
        scheduler=DDIMScheduler(**AUDIOLDM, set_alpha_to_one=False),
        vocoder=SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER)),
    )
