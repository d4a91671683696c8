"""Flamingo in its three sizes. Facts and sources: docs/systems.md."""

from dataclasses import replace

from model.presets.templates import FLAMINGO_QA
from model.spec.backbones import Llama
from model.spec.fusion import GatedCrossAttention
from model.spec.input_branches import InputBranchSpec, ModelSpec
from model.spec.nfnet import NfNet
from model.spec.projectors import PerceiverResampler
from model.spec.system import Stage, System

HEAD_WIDTH = 128


def flamingo_3b() -> System:
    """Flamingo-3B (2022, arXiv:2204.14198); see `flamingo_80b`."""
    return _flamingo("flamingo_3b", _chinchilla("1.4b", 2048, 24, mlp_width=5888), every_n_layers=1)


def flamingo_9b() -> System:
    """Flamingo-9B (2022, arXiv:2204.14198); see `flamingo_80b`."""
    return _flamingo("flamingo_9b", _chinchilla("7b", 4096, 40, mlp_width=8448), every_n_layers=4)


def flamingo_80b() -> System:
    """Flamingo (2022, arXiv:2204.14198), 80B: cross-attention before every seventh layer.

    Chinchilla and the encoder's weights are not published: the language model is a LLaMA with the
    layers, width and heads of table 4, whose feed-forward width is chosen to match the count of
    table 5; the encoder starts from ImageNet. It has no instruction tuning: SFT trains the same
    parameters as PT. The batch size is not published as a single number.
    """
    return _flamingo(
        "flamingo_80b", _chinchilla("70b", 8192, 80, mlp_width=24_416), every_n_layers=7
    )


def _flamingo(name: str, backbone: Llama, *, every_n_layers: int) -> System:
    resampler = PerceiverResampler()
    video = InputBranchSpec(
        modality="video",
        encoder=NfNet(),
        projector=resampler,
        frames=8,
        encoder_of="image",
        projector_of="image",
        before="<image>",
    )
    stage = Stage(
        trainable=("inputs.*.projector.*", "backbone.*.gated.*"),
        prompt="plain",
        learning_rate=1e-4,
        weight_decay=0.1,
        warmup=0.01,
        global_batch=256,
        micro_batch=8,
        recompute=True,
    )
    return System(
        name=name,
        paper="arXiv:2204.14198",
        model=ModelSpec(
            inputs=(
                InputBranchSpec(encoder=NfNet(), projector=resampler, before="<image>"),
                video,
            ),
            backbone=backbone,
            fusion=GatedCrossAttention(
                every_n_layers=every_n_layers, heads=backbone.heads, media_width=resampler.width
            ),
        ),
        pt=stage,
        sft=replace(stage, prompt="chat", learning_rate=1e-5),
    )


def _chinchilla(size: str, width: int, layers: int, *, mlp_width: int) -> Llama:
    """Return a stand-in for Chinchilla (Hoffmann et al. 2022) with Flamingo's table 4 sizes."""
    return Llama(
        weights=f"unpublished/chinchilla-{size}",
        vocabulary=32_000,
        width=width,
        mlp_width=mlp_width,
        layers=layers,
        heads=width // HEAD_WIDTH,
        kv_heads=width // HEAD_WIDTH,
        max_positions=2048,
        template=FLAMINGO_QA,
    )
