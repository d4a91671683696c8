"""Spec to modules: the one place that knows all classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from model import aligned_lm, byte_tokenizers
from model.backbones import chatglm, glm, llama, opt, palm, qwen, t5
from model.encoders import (
    beats,
    cformer,
    clip,
    docpedia,
    eva2_clip,
    eva_clip,
    hubert,
    imagebind,
    monkey,
    nfnet,
    pointbert,
    temporal_clip,
    uniformer_eva,
    vit,
    vit_22b,
    whisper,
)
from model.fusion import gated_cross_attention, visual_expert
from model.generative_lm import GenerativeMultimodalLM
from model.generators import stable_diffusion
from model.input_projectors import (
    abstractor,
    glu_adapter,
    join,
    ldp,
    mlp,
    perceiver,
    qformer,
    qwen_resampler,
    video_qformer,
)
from model.multimodal_lm import MultimodalLM
from model.output_branch import Generator, OutputBranch
from model.output_projectors import output_transformer
from model.packing import attend_within_samples
from model.peft import adapter, lora, prefix, qlora
from model.spec import InputBranchSpec, ModelSpec, ProjectorShape, SpecError, Stage
from model.spec.audio import Beats, CFormer, Hubert, Whisper
from model.spec.backbones import T5, ChatGlm, Glm, Llama, Opt, Palm, Qwen
from model.spec.fusion import GatedCrossAttention, Splice, VisualExpert
from model.spec.glu_adapter import GluAdapter
from model.spec.high_resolution import DocPedia, Monkey
from model.spec.image import ClipVision, Eva2Clip, EvaClip
from model.spec.imagebind import ImageBind
from model.spec.input_branches import Encoder
from model.spec.nfnet import NfNet
from model.spec.output_branches import OutputBranchSpec, OutputTransformer, StableDiffusion
from model.spec.peft import Adapter, Lora, Peft, Prefix, QLora
from model.spec.points import PointBert
from model.spec.projectors import (
    Abstractor,
    Join,
    Ldp,
    Mlp,
    PerceiverResampler,
    QwenResampler,
)
from model.spec.qformer import QFormer, VideoQFormer
from model.spec.video import TemporalClip, UniformerEva
from model.spec.vit import Vit, Vit22B
from model.weights import Weights, load_transformers

# Specs are matched with files by their class; what each file's functions take is its own spec.
AnySpec = Any


class EncoderFile(Protocol):
    """What a file of `model/encoders/` offers."""

    def build(self, spec: AnySpec, *, weights: Weights, dtype: torch.dtype) -> nn.Module:
        """Return the encoder."""

    def preprocess(self, spec: AnySpec, raw: Any) -> Tensor:  # noqa: ANN401 -- a decoded medium
        """Return the encoder's input (parts, *shape) of a decoded medium."""


class ProjectorFile(Protocol):
    """What a file of `model/input_projectors/` offers."""

    def build(self, spec: AnySpec, ends: ProjectorShape, *, weights: Weights) -> nn.Module:
        """Return the projector."""


class BackboneFile(Protocol):
    """What a file of `model/backbones/` offers."""

    def build(self, spec: AnySpec, *, weights: Weights, dtype: torch.dtype) -> PreTrainedModel:
        """Return the backbone."""


class OutputProjectorFile(Protocol):
    """What a file of `model/output_projectors/` offers."""

    def build(self, spec: AnySpec, width_in: int, conditions: tuple[int, int]) -> nn.Module:
        """Return a new projector."""


class GeneratorFile(Protocol):
    """What a file of `model/generators/` offers."""

    def build(
        self, spec: AnySpec, *, denoises: bool, weights: Weights, dtype: torch.dtype
    ) -> Generator:
        """Return the generator, or of it what training needs; see `model.drawing.Generator`."""

    def preprocess(self, spec: AnySpec, raw: Any) -> Tensor:  # noqa: ANN401 -- a decoded medium
        """Return what the generator compares with, (*shape), of a decoded medium."""

    def tokenizer(self, spec: AnySpec, *, weights: Weights) -> PreTrainedTokenizerBase:
        """Return the tokenizer of its text encoder."""


ENCODERS: Mapping[type, EncoderFile] = {
    ClipVision: clip,
    EvaClip: eva_clip,
    Eva2Clip: eva2_clip,
    Vit: vit,
    Vit22B: vit_22b,
    NfNet: nfnet,
    Monkey: monkey,
    DocPedia: docpedia,
    UniformerEva: uniformer_eva,
    TemporalClip: temporal_clip,
    Whisper: whisper,
    Hubert: hubert,
    Beats: beats,
    CFormer: cformer,
    PointBert: pointbert,
    ImageBind: imagebind,
}
PROJECTORS: Mapping[type, ProjectorFile] = {
    Mlp: mlp,
    Join: join,
    Ldp: ldp,
    PerceiverResampler: perceiver,
    QwenResampler: qwen_resampler,
    Abstractor: abstractor,
    GluAdapter: glu_adapter,
    QFormer: qformer,
    VideoQFormer: video_qformer,
}
OUTPUT_PROJECTORS: Mapping[type, OutputProjectorFile] = {OutputTransformer: output_transformer}
GENERATORS: Mapping[type, GeneratorFile] = {StableDiffusion: stable_diffusion}
BACKBONES: Mapping[type, BackboneFile] = {
    Llama: llama,
    Opt: opt,
    T5: t5,
    Qwen: qwen,
    Glm: glm,
    ChatGlm: chatglm,
    Palm: palm,
}
PEFT: Mapping[type, Callable[[PreTrainedModel, AnySpec], None]] = {
    Lora: lora.add_lora,
    QLora: qlora.add,
    Prefix: prefix.add,
    Adapter: adapter.add,
}

FUSIONS: Mapping[type, Callable[[PreTrainedModel, AnySpec], None]] = {
    Splice: lambda backbone, spec: None,
    GatedCrossAttention: gated_cross_attention.add,
    VisualExpert: visual_expert.add,
}

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(spec: ModelSpec, stage: Stage, *, weights: Weights, seed: int = 0) -> MultimodalLM:
    """Build a model with the adapters of a stage; new weights depend on the seed alone.

    Args:
        spec: the slots.
        stage: brings the adapters, DLP's reference and the precision of the frozen weights.
        weights: `pretrained` loads encoders and backbone from the hub or a folder, `random` makes
            them up from their configuration.
        seed: of everything that is not loaded.

    Raises:
        SpecError: weights that cannot be had, or that do not fit the spec.
    """
    inputs = build_inputs(spec, stage, weights=weights, seed=seed)
    dtype = DTYPES[stage.precision]
    backbone = BACKBONES[type(spec.backbone)].build(spec.backbone, weights=weights, dtype=dtype)
    FUSIONS[type(spec.fusion)](backbone, spec.fusion)
    if stage.peft is not None:
        add_peft(backbone, stage.peft)
    if spec.packs and not isinstance(stage.peft, Prefix):  # whose keys stand before all samples
        attend_within_samples(backbone)
    if stage.recompute:
        backbone.activation_checkpointing_enable({"use_reentrant": False})
    if stage.reference is not None:
        return aligned_lm.build(spec, inputs, backbone, stage.reference, weights=weights)
    if stage.generation is not None:
        outputs = build_outputs(spec, stage, weights=weights, seed=seed)
        return GenerativeMultimodalLM(spec, inputs, backbone, outputs)
    return MultimodalLM(spec, inputs, backbone)


def build_inputs(
    spec: ModelSpec, stage: Stage, *, weights: Weights, seed: int = 0
) -> dict[str, dict[str, nn.Module]]:
    """Build what stands in front of the backbone, by modality, with the weights that `build` gives.

    What is new in an encoder is drawn in the same order; so none is built without its neighbours.
    """
    torch.manual_seed(seed)
    dtype = DTYPES[stage.precision]
    return {
        slot.modality: own_parts(slot, spec.projected_width, weights, dtype) for slot in spec.inputs
    }


def build_outputs(
    spec: ModelSpec, stage: Stage, *, weights: Weights, seed: int = 0
) -> dict[str, OutputBranch]:
    """Build what stands behind the backbone, by modality, for a stage that draws."""
    assert stage.generation is not None
    denoises = stage.generation.denoise > 0
    generators = _generators(spec, stage, denoises=denoises, weights=weights, seed=seed)
    ways: dict[str, OutputBranch] = {}
    for slot in spec.outputs:
        projector = OUTPUT_PROJECTORS[type(slot.projector)]
        width = spec.backbone.width
        way = OutputBranch(
            slot,
            width,
            projector=projector.build(slot.projector, width, slot.generator.conditions),
            generator=generators[slot.modality],
            denoises=denoises,
        )
        ways[slot.modality] = way.to(DTYPES[stage.precision])
    return ways


def build_text_encoders(
    spec: ModelSpec, stage: Stage, *, weights: Weights, seed: int = 0
) -> dict[str, Generator]:
    """Build of the generators that a stage uses their text encoders alone, as `build` has them."""
    if stage.generation is None:
        return {}
    return _generators(spec, stage, denoises=False, weights=weights, seed=seed)


def _generators(
    spec: ModelSpec, stage: Stage, *, denoises: bool, weights: Weights, seed: int
) -> dict[str, Generator]:
    """Build the generators by modality; each draws its random weights from a seed of its own."""
    made: dict[str, Generator] = {}
    for number, slot in enumerate(spec.outputs, start=1):
        torch.manual_seed(seed + number)
        generator = GENERATORS[type(slot.generator)]
        made[slot.modality] = generator.build(
            slot.generator, denoises=denoises, weights=weights, dtype=DTYPES[stage.precision]
        )
    return made


def own_parts(
    slot: InputBranchSpec, width: int, weights: Weights, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Return a slot's own modules; what it shares belongs to another slot."""
    parts: dict[str, nn.Module] = {}
    if slot.encoder_of is None:
        encoder = ENCODERS[type(slot.encoder)]
        parts["encoder"] = encoder.build(slot.encoder, weights=weights, dtype=dtype)
    if slot.projector_of is None:
        projector = PROJECTORS[type(slot.projector)]
        made = projector.build(slot.projector, slot.projector_shape(width), weights=weights)
        parts["projector"] = made.to(dtype)
    return parts


def add_peft(backbone: PreTrainedModel, peft: Peft) -> None:
    """Put a stage's adapters into a backbone, in place."""
    PEFT[type(peft)](backbone, peft)


def build_on_meta(spec: ModelSpec, stage: Stage) -> MultimodalLM:
    """Build the full-size architecture without any memory for its weights."""
    with torch.device("meta"):
        return build(spec, stage, weights="random")


def preprocess(spec: Encoder, raw: object) -> Tensor:
    """Return an encoder's input (parts, *shape) of a decoded medium; docs/components.md."""
    file = ENCODERS[type(spec)]
    if isinstance(raw, list) and not isinstance(spec, ImageBind):  # which pairs neighbours
        return torch.cat([file.preprocess(spec, frame) for frame in raw])
    return file.preprocess(spec, raw)


def preprocess_target(slot: OutputBranchSpec, raw: object) -> Tensor:
    """Return what a slot's generator compares with, (*shape), of a decoded medium."""
    return GENERATORS[type(slot.generator)].preprocess(slot.generator, raw)


def build_caption_tokenizers(
    outputs: Sequence[OutputBranchSpec], *, weights: Weights
) -> dict[str, PreTrainedTokenizerBase]:
    """Return, by kind (`to_image`), the tokenizers of the generators' text encoders."""
    return {
        slot.kind: GENERATORS[type(slot.generator)].tokenizer(slot.generator, weights=weights)
        for slot in outputs
    }


def build_tokenizer(spec: ModelSpec, *, weights: Weights) -> PreTrainedTokenizerBase:
    """Load the backbone's tokenizer; with random weights, a byte tokenizer that needs no files."""
    if weights == "random":
        tokenizer: PreTrainedTokenizerBase = byte_tokenizers.of_a_backbone()
    else:
        tokenizer = load_transformers(AutoTokenizer, spec.backbone.weights)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, whatever stands there
    # Texts are data: "</s>" in a web page's caption must not end a sequence.
    tokenizer.split_special_tokens = True
    return tokenizer


def build_text_tokenizer(spec: ModelSpec, *, weights: Weights) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of the projectors that read the instruction; None if none does.

    Raises:
        SpecError: they want different ones, or it cannot be had.
    """
    named = {
        slot.projector.tokenizer
        for slot in spec.inputs
        if isinstance(slot.projector, QFormer) and slot.projector.reads_text
    }
    if not named:
        return None
    if len(named) > 1:
        raise SpecError(f"inputs: projectors read text of {sorted(named)}, want one tokenizer")
    if weights == "random":
        return byte_tokenizers.like_bert_s()
    return load_transformers(AutoTokenizer, named.pop())
