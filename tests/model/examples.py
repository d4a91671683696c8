"""One spec of every component class in `model.build`, found without a list to keep up to date."""

from dataclasses import MISSING, fields

from model.build import ENCODERS
from model.presets import PRESETS, system
from model.presets.blocks import monkey
from model.spec.hf_encoders import HfAudio, HfVision
from model.spec.high_resolution import Monkey
from model.spec.image_processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor

DINOV2 = HfVision(
    weights="facebook/dinov2-small",
    config={
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
    },
    processor=ImageProcessor(
        size=(224, 224), shortest_edge=256, mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    width=384,
    grid=(16, 16),
    prefix=1,
)
WHISPER = HfAudio(
    weights="openai/whisper-tiny",
    config={
        "model_type": "whisper",
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "decoder_attention_heads": 6,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
    },
    extractor={
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80,
        "hop_length": 160,
        "sampling_rate": 16_000,
    },
    seconds=30.0,
)


def default_spec(cls):
    """Return a spec with its defaults; required texts, such as `weights`, are empty.

    A class with other required fields must be used in a preset, or in the test's own systems.
    """
    required = [field for field in fields(cls) if field.default is field.default_factory is MISSING]
    others = [field.name for field in required if field.type not in ("str", str)]
    assert not others, f"{cls.__name__}: give {', '.join(others)} a default, or use it in a preset"
    return cls(**{field.name: "" for field in required})


def encoder_specs():
    """Return a spec of every encoder class: a preset's where there is one, else the defaults."""
    found = {Monkey: monkey(), HfVision: DINOV2, HfAudio: WHISPER}
    for name in PRESETS:
        for branch in system(name).model.inputs:
            found.setdefault(type(branch.encoder), branch.encoder)
    return {cls: found[cls] if cls in found else default_spec(cls) for cls in ENCODERS}
