"""The embedded default: a small LLaVA-1.5 on the toy checkpoints of the digits world."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from model.spec import (
    ChatTemplate,
    ClipVision,
    InputBranchSpec,
    Llama,
    Lora,
    Mlp,
    ModelSpec,
    Stage,
    System,
)
from model.spec.audio import Whisper
from model.spec.generators import AudioLdm, StableDiffusion, TextToVideo
from model.spec.image_processor import HALF, squash
from model.spec.output_branches import Generation, OutputBranchSpec, OutputTransformer
from model.spec.points import PointBert
from model.spec.projectors import TokenConcat
from model.spec.system import TRAINABLE_OUTPUTS, ParameterGroup

# A path, not an import: toy checkpoints are plain files next to the scripts that train them.
TOY_CHECKPOINTS = Path(__file__).parents[2] / "etl" / "digits" / "checkpoints"


def digits() -> System:
    """LLaVA-1.5's wiring with a 4-layer ViT and a 4-layer LLaMA trained on the digits world."""
    image = InputBranchSpec(encoder=_vision("vision"), projector=Mlp(depth=2))
    return _system("digits", image, captions=128, dialogues=192)


def digits_video() -> System:
    """The same with videos: four frames, each encoded as a picture, tokens concatenated."""
    return _system("digits_video", _video())


def digits_audio() -> System:
    """The same with sounds: five of Whisper's tokens are concatenated to one (100 ms)."""
    return _system("digits_audio", _audio())


def digits_points() -> System:
    """The same with point clouds, one token each."""
    return _system("digits_points", _points())


def digits_omni() -> System:
    """One model for pictures, videos, sounds and point clouds; the first two share an encoder."""
    image = InputBranchSpec(encoder=_vision("frames"), projector=Mlp(depth=2))
    return _system("digits_omni", image, _video(encoder_of="image"), _audio(), _points())


def digits_image_audio() -> System:
    """One model for pictures and sounds, which may answer yes or no.

    These words are new to the toy language model, so that SFT trains its embeddings, too. Small
    batches, since it is for few samples.
    """
    image = InputBranchSpec(encoder=_vision("vision"), projector=Mlp(depth=2))
    system = _system("digits_image_audio", image, _audio(), captions=128, dialogues=192)
    assert system.pt is not None
    assert system.sft is not None
    words = "backbone.model.embed_tokens.*"
    return replace(
        system,
        pt=replace(system.pt, global_batch=64, micro_batch=32, epochs=2),
        sft=replace(
            system.sft,
            trainable=(*system.sft.trainable, words),
            global_batch=64,
            micro_batch=32,
            epochs=2,
        ),
    )


def digits_any() -> System:
    """One model that sees and hears, and answers with text, pictures, sounds and videos.

    NExT-GPT's wiring: its transformer from signal tokens to the conditions of frozen generators.
    """
    image = InputBranchSpec(encoder=_vision("vision"), projector=Mlp(depth=2))
    system = _system("digits_any", image, _audio(), captions=128, dialogues=192)
    assert system.pt is not None
    assert system.sft is not None
    stages = [
        replace(
            stage,
            trainable=(*stage.trainable, *TRAINABLE_OUTPUTS),
            generation=Generation(),
            groups=(ParameterGroup(pattern="outputs.*", learning_rate=1e-3),),
            # ZeRO-3's hooks on each of the many small modules of three UNets cost more than they.
            ds_config="zero2",
        )
        for stage in (system.pt, system.sft)
    ]
    outputs = tuple(
        OutputBranchSpec(
            modality=modality,
            signals=4,
            projector=OutputTransformer(width=128, layers=2),
            generator=generator,
            condition_dropout=0.1,
        )
        for modality, generator in _generators().items()
    )
    return replace(
        system,
        paper="arXiv:2309.05519",
        model=replace(system.model, outputs=outputs),
        pt=stages[0],
        sft=stages[1],
    )


def _generators() -> dict[
    Literal["image", "video", "audio"], StableDiffusion | TextToVideo | AudioLdm
]:
    """Return the toy generators, see `etl/digits/checkpoints/`."""
    folder = TOY_CHECKPOINTS / "generators"
    image = StableDiffusion(
        weights=str(folder / "image"),
        image_size=24,
        latent_channels=8,
        vae_widths=(8, 16, 32),
        widths=(32, 64),
        blocks=1,
        norm_groups=8,
        heads=(4, 4),
        linear_projection=True,
        text_width=64,
        text_mlp_width=128,
        text_layers=2,
        text_heads=4,
        text_tokens=7,
        text_vocabulary=21,
        prediction="v_prediction",
        steps=10,
        guidance_scale=2.0,
    )
    video = TextToVideo(
        weights=str(folder / "video"),
        width=24,
        height=24,
        frames=4,
        latent_channels=8,
        vae_widths=(8, 16, 32),
        widths=(32, 32),
        blocks=1,
        norm_groups=8,
        head_width=8,
        text_width=64,
        text_mlp_width=128,
        text_layers=2,
        text_heads=4,
        text_tokens=10,
        text_vocabulary=27,
        text_activation="quick_gelu",
        prediction="v_prediction",
        steps=10,
        guidance_scale=2.0,
    )
    audio = AudioLdm(
        weights=str(folder / "audio"),
        seconds=0.16,
        mel_bins=64,
        latent_channels=4,
        vae_widths=(8, 16, 32),
        widths=(24, 48),
        blocks=1,
        norm_groups=8,
        heads=4,
        text_width=64,
        text_mlp_width=128,
        text_layers=2,
        text_heads=4,
        text_tokens=6,
        text_vocabulary=17,
        embedding_width=64,
        vocoder_width=64,
        prediction="v_prediction",
        steps=10,
        guidance_scale=2.0,
    )
    return {"image": image, "video": video, "audio": audio}


def _system(
    name: str, *branches: InputBranchSpec, captions: int = 256, dialogues: int = 256
) -> System:
    """Wire branches to the backbone; `captions` and `dialogues` are max_tokens in MM-PT and SFT."""
    projectors = tuple(f"inputs.{branch.modality}.projector.*" for branch in branches)
    return System(
        name=name,
        paper="arXiv:2310.03744",
        model=ModelSpec(inputs=branches, backbone=_backbone()),
        pt=Stage(
            trainable=projectors,
            prompt="plain",
            learning_rate=3e-3,
            global_batch=128,
            micro_batch=64,
            epochs=3,
            max_tokens=captions,
            precision="fp32",
        ),
        sft=Stage(
            trainable=(*projectors, "backbone.*lora_*"),
            peft=Lora(rank=32, alpha=64, dropout=0.0),
            prompt="chat",
            learning_rate=2e-3,
            global_batch=128,
            micro_batch=64,
            epochs=4,
            max_tokens=dialogues,
            precision="fp32",
        ),
    )


def _video(encoder_of: Literal["image"] | None = None) -> InputBranchSpec:
    return InputBranchSpec(
        modality="video",
        encoder=_vision("frames"),
        encoder_of=encoder_of,
        projector=Mlp(depth=2),
        frames=4,
    )


def _audio() -> InputBranchSpec:
    encoder = Whisper(
        weights=str(TOY_CHECKPOINTS / "audio"),
        width=128,
        mlp_width=256,
        layers=2,
        heads=4,
        seconds=2,
    )
    return InputBranchSpec(modality="audio", encoder=encoder, projector=TokenConcat(group_size=5))


def _points() -> InputBranchSpec:
    return InputBranchSpec(modality="points", encoder=points_encoder(), projector=Mlp(depth=2))


def _vision(checkpoint: str) -> ClipVision:
    return ClipVision(
        weights=str(TOY_CHECKPOINTS / checkpoint),
        width=128,
        mlp_width=512,
        layers=4,
        heads=4,
        patch_size=8,
        feature_layer=-1,
        processor=squash(48, mean=HALF, std=HALF),
    )


def points_encoder() -> PointBert:
    """Return the PointBERT of the digits world, which encodes a cloud as one token."""
    return PointBert(
        weights=str(TOY_CHECKPOINTS / "points" / "model.safetensors"),
        hidden_width=128,
        mlp_width=256,
        layers=2,
        heads=4,
        points=512,
        channels=6,
        groups=48,
        group_size=2,
        patch_width=128,
        output="pooled",
    )


def _backbone() -> Llama:
    return Llama(
        weights=str(TOY_CHECKPOINTS / "language"),
        vocabulary=384,
        width=128,
        mlp_width=384,
        layers=4,
        heads=4,
        kv_heads=4,
        max_positions=512,
        tied_embeddings=True,
        # The answer directly follows the question's last word, which says what to look up: this
        # needs one step of attention less than words in between, and is learned in minutes.
        template=ChatTemplate(user="{media}{text}", assistant=" {text}"),
    )
