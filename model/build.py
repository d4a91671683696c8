"""Build modules from specs; the tables below list all component classes.

`build` makes the whole model: input branches, backbone with fusion and adapters, output branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model import byte_tokenizers
from model.backbones import chatglm, glm, hf, llama, opt, palm, qwen, t5
from model.encoders import (
    beats,
    cformer,
    clip,
    docpedia,
    eva2_clip,
    eva_clip,
    hf_audio,
    hf_vision,
    hubert,
    imagebind,
    monkey,
    nfnet,
    pointbert,
    siglip,
    temporal_clip,
    uniformer_eva,
    vit,
    vit_22b,
    whisper,
)
from model.fusion import gated_cross_attention, visual_expert
from model.generators import latent_diffusion
from model.input_projectors import (
    abstractor,
    glu_adapter,
    ldp,
    mlp,
    perceiver,
    pformer,
    qformer,
    qwen_resampler,
    token_concat,
    video_qformer,
)
from model.multimodal_lm import MultimodalLM
from model.output_branch import Generator, OutputBranch
from model.output_projectors import output_mlp, output_transformer
from model.packing import attend_within_samples
from model.peft import adapter, lora, prefix, qlora
from model.preference_lm import PreferenceLM
from model.protocols import (
    AnySpec,
    BackboneFile,
    EncoderFile,
    GeneratorFile,
    OutputProjectorFile,
    ProjectorFile,
)
from model.reward_lm import RewardLM
from model.spec import InputBranchSpec, ModelSpec, SpecError, Stage
from model.spec.audio import Beats, CFormer, Hubert, Whisper
from model.spec.backbones import T5, ChatGlm, Glm, Llama, Opt, Palm, Qwen
from model.spec.fusion import GatedCrossAttention, Splice, VisualExpert
from model.spec.generators import AudioLdm, AudioLdm2, StableDiffusion, TextToVideo, UnClip
from model.spec.glu_adapter import GluAdapter
from model.spec.hf_backbones import HfCausal, HfSeq2Seq
from model.spec.hf_encoders import HfAudio, HfVision
from model.spec.high_resolution import DocPedia, Monkey
from model.spec.image import ClipVision, Eva2Clip, EvaClip
from model.spec.imagebind import ImageBind
from model.spec.input_branches import Encoder
from model.spec.nfnet import NfNet
from model.spec.output_branches import (
    OutputBranchSpec,
    OutputMlp,
    OutputTransformer,
)
from model.spec.peft import Adapter, Lora, Peft, Prefix, QLora
from model.spec.pformer import Reference
from model.spec.points import PointBert
from model.spec.projectors import (
    Abstractor,
    Ldp,
    Mlp,
    PerceiverResampler,
    QwenResampler,
    TokenConcat,
)
from model.spec.qformer import QFormer, VideoQFormer
from model.spec.siglip import Siglip
from model.spec.system import RlhfStage
from model.spec.video import TemporalClip, UniformerEva
from model.spec.vit import Vit, Vit22B
from model.weights import Weights, load_tokenizer

# Spec class → the file that builds it. A new component is added here.
ENCODERS: Mapping[type, EncoderFile] = {
    ClipVision: clip,
    EvaClip: eva_clip,
    Eva2Clip: eva2_clip,
    Siglip: siglip,
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
    HfVision: hf_vision,
    HfAudio: hf_audio,
}
PROJECTORS: Mapping[type, ProjectorFile] = {
    Mlp: mlp,
    TokenConcat: token_concat,
    Ldp: ldp,
    PerceiverResampler: perceiver,
    QwenResampler: qwen_resampler,
    Abstractor: abstractor,
    GluAdapter: glu_adapter,
    QFormer: qformer,
    VideoQFormer: video_qformer,
}
BACKBONES: Mapping[type, BackboneFile] = {
    Llama: llama,
    Opt: opt,
    T5: t5,
    Qwen: qwen,
    Glm: glm,
    ChatGlm: chatglm,
    Palm: palm,
    HfCausal: hf,
    HfSeq2Seq: hf,
}
FUSIONS: Mapping[type, Callable[[PreTrainedModel, AnySpec], None]] = {
    Splice: lambda backbone, spec: None,
    GatedCrossAttention: gated_cross_attention.add,
    VisualExpert: visual_expert.add,
}
PEFT: Mapping[type, Callable[[PreTrainedModel, AnySpec], None]] = {
    Lora: lora.add_lora,
    QLora: qlora.add,
    Prefix: prefix.add,
    Adapter: adapter.add,
}
OUTPUT_PROJECTORS: Mapping[type, OutputProjectorFile] = {
    OutputTransformer: output_transformer,
    OutputMlp: output_mlp,
}
GENERATORS: Mapping[type, GeneratorFile] = {
    StableDiffusion: latent_diffusion,
    UnClip: latent_diffusion,
    TextToVideo: latent_diffusion,
    AudioLdm: latent_diffusion,
    AudioLdm2: latent_diffusion,
}

CaptionTokenizer = Callable[[str], tuple[int, ...]]
"""From a caption to its ids, cut or padded to what the generator's text encoders read."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(
    spec: ModelSpec,
    stage: Stage,
    *,
    weights: Weights,
    seed: int = 0,
    decoding: bool = False,
    latents_given: bool = False,
) -> MultimodalLM:
    """Build a model with a stage's adapters; new weights depend on the seed alone.

    Args:
        spec: of the model.
        stage: its adapters, reference, generation and precision are used.
        weights: `pretrained` loads encoders, backbone and generators from the hub or a folder,
            `random` initialises them from their configurations.
        seed: of all weights that are not loaded.
        decoding: whether the generators can `sample`, which training does not need.
        latents_given: whether batches give the latents of generated media, so that the encoders of
            the generators' autoencoders are not needed.

    Raises:
        SpecError: weights that cannot be loaded, or that do not fit the spec.
    """
    inputs = build_inputs(spec, stage, weights=weights, seed=seed)
    backbone = build_backbone(spec, stage, weights=weights)
    outputs = build_outputs(
        spec, stage, weights=weights, seed=seed, decoding=decoding, latents_given=latents_given
    )
    reference, max_text = None, 0
    if stage.reference is not None:
        reference = build_reference(spec, stage.reference, weights=weights).to(backbone.dtype)
        max_text = stage.reference.pformer.max_text
    return MultimodalLM(spec, inputs, backbone, outputs, reference, max_text)


def build_policy(
    spec: ModelSpec, stage: RlhfStage, *, weights: Weights, seed: int = 0
) -> PreferenceLM:
    """Build a model for RLHF; the reference is added once the weights of SFT are loaded.

    Args:
        spec: of the model.
        stage: its adapters and precision are used.
        weights: see `build`.
        seed: of all weights that are not loaded.

    Raises:
        SpecError: weights that cannot be loaded, or that do not fit the spec.
    """
    inputs = build_inputs(spec, stage, weights=weights, seed=seed)
    backbone = build_backbone(spec, stage, weights=weights)
    outputs = build_outputs(spec, stage, weights=weights, seed=seed)
    return PreferenceLM(spec, inputs, backbone, outputs)


def build_reward_model(
    spec: ModelSpec, stage: RlhfStage, *, weights: Weights, seed: int = 0
) -> RewardLM:
    """Build a reward model; arguments and errors as `build_policy`."""
    inputs = build_inputs(spec, stage, weights=weights, seed=seed)
    return RewardLM(spec, inputs, build_backbone(spec, stage, weights=weights))


def build_on_meta(spec: ModelSpec, stage: Stage, *, latents_given: bool = False) -> MultimodalLM:
    """Build the full-size model on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return build(spec, stage, weights="random", latents_given=latents_given)


def build_inputs(
    spec: ModelSpec, stage: Stage, *, weights: Weights, seed: int = 0
) -> dict[str, dict[str, nn.Module]]:
    """Build the input branches by modality, with the same weights as in `build`.

    All branches are built, since the new weights of each depend on those initialised before.
    """
    torch.manual_seed(seed)
    dtype = DTYPES[stage.precision]
    return {
        branch.modality: build_input_branch(branch, spec.projected_width, weights, dtype)
        for branch in spec.inputs
    }


def build_input_branch(
    branch: InputBranchSpec, width: int, weights: Weights, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Return a branch's own modules; those that it shares belong to another branch."""
    own: dict[str, nn.Module] = {}
    if branch.encoder_of is None:
        encoder = ENCODERS[type(branch.encoder)]
        own["encoder"] = encoder.build(branch.encoder, weights=weights, dtype=dtype)
    if branch.projector_of is None:
        projector = PROJECTORS[type(branch.projector)]
        shape = branch.projector_shape(width)
        own["projector"] = projector.build(branch.projector, shape, weights=weights).to(dtype)
    return own


def build_backbone(spec: ModelSpec, stage: Stage, *, weights: Weights) -> PreTrainedModel:
    """Build the backbone with the spec's fusion layers and the stage's adapters."""
    file = BACKBONES[type(spec.backbone)]
    backbone = file.build(spec.backbone, weights=weights, dtype=DTYPES[stage.precision])
    FUSIONS[type(spec.fusion)](backbone, spec.fusion)
    if stage.peft is not None:
        add_peft(backbone, stage.peft)
    # Packed samples share one prefix, which precedes the first of them.
    if spec.supports_packing and not isinstance(stage.peft, Prefix):
        attend_within_samples(backbone)
    if stage.recompute:
        backbone.activation_checkpointing_enable({"use_reentrant": False})
    return backbone


def add_peft(backbone: PreTrainedModel, peft: Peft) -> None:
    """Add a stage's adapters to a backbone, in place."""
    PEFT[type(peft)](backbone, peft)


def build_outputs(
    spec: ModelSpec,
    stage: Stage,
    *,
    weights: Weights,
    seed: int = 0,
    decoding: bool = False,
    latents_given: bool = False,
) -> dict[str, OutputBranch]:
    """Build the output branches by modality; none for a stage that does not use them."""
    if not stage.output_branches(spec):
        return {}
    denoised = stage.denoising_branches(spec)

    def parts(own: OutputBranchSpec) -> dict[str, bool]:
        denoising = own in denoised
        encoding = denoising and not latents_given
        return {
            "denoising": denoising,
            "encoding": encoding,
            "decoding": decoding or stage.samples_answers,
        }

    generators = _generators(spec, stage, parts, weights=weights, seed=seed)
    branches: dict[str, OutputBranch] = {}
    width = spec.backbone.width
    for number, output in enumerate(spec.outputs, start=len(spec.outputs) + 1):
        # How much of the generators is built must not change the new weights.
        torch.manual_seed(seed + number)
        file = OUTPUT_PROJECTORS[type(output.projector)]
        generators[output.modality].set_recompute(stage.recompute)
        branch = OutputBranch(
            output,
            width,
            projector=file.build(output.projector, width, output.generator.streams),
            generator=generators[output.modality],
            denoising=output in denoised,
        )
        branches[output.modality] = branch.to(DTYPES[stage.precision])
    return branches


def build_reference(
    spec: ModelSpec, reference: Reference, *, weights: Weights
) -> pformer.PromptFormer:
    """Return the P-Former whose prompts are targets of the projected tokens, without dropout.

    Raises:
        SpecError: a model with several input branches, or weights that cannot be loaded.
    """
    if len(spec.inputs) != 1:
        raise SpecError(f"reference: needs exactly one input branch, not {len(spec.inputs)}")
    return pformer.build(
        replace(reference.pformer, dropout=0.0),
        prompts=spec.inputs[0].tokens,
        width_out=spec.backbone.width,
        weights=weights,
    )


def build_target_encoders(
    spec: ModelSpec, stage: Stage, *, weights: Weights, seed: int = 0
) -> dict[str, Generator]:
    """Build of a stage's generators only what makes targets, with the same weights as in `build`.

    These are the text encoder and, where the stage trains eq. 5, the autoencoder's encoder. A stage
    without generation has no targets.
    """
    if stage.generation is None:
        return {}
    denoised = stage.denoising_branches(spec)

    def parts(own: OutputBranchSpec) -> dict[str, bool]:
        return {"denoising": False, "encoding": own in denoised}

    return _generators(spec, stage, parts, weights=weights, seed=seed)


def _generators(
    spec: ModelSpec,
    stage: Stage,
    parts: Callable[[OutputBranchSpec], dict[str, bool]],
    *,
    weights: Weights,
    seed: int,
) -> dict[str, Generator]:
    """Build the generators by modality; each has a seed of its own for random weights.

    Args:
        spec: of the model.
        stage: its precision is used.
        parts: which parts a branch needs, as arguments of its generator's `build`.
        weights: see `build`.
        seed: see `build`.
    """
    generators: dict[str, Generator] = {}
    for number, output in enumerate(stage.output_branches(spec), start=1):
        torch.manual_seed(seed + number)
        generators[output.modality] = GENERATORS[type(output.generator)].build(
            output.generator,
            **parts(output),
            weights=weights,
            dtype=DTYPES[stage.precision],
        )
    return generators


def save_generators(
    spec: ModelSpec, stage: Stage, folder: Path, *, weights: Weights, seed: int = 0
) -> None:
    """Write each complete generator of a stage to FOLDER/MODALITY, as a diffusers checkpoint."""
    for number, output in enumerate(stage.output_branches(spec), start=1):
        torch.manual_seed(seed + number)  # as in `_generators`
        GENERATORS[type(output.generator)].save(
            output.generator,
            folder / output.modality,
            weights=weights,
            dtype=DTYPES[stage.precision],
        )


def preprocess(spec: Encoder, raw: object) -> Tensor:
    """Return an encoder's input (segments, *shape) for a decoded medium; docs/components.md."""
    file = ENCODERS[type(spec)]
    if isinstance(raw, list) and not isinstance(spec, ImageBind):  # which encodes pairs of frames
        return torch.cat([file.preprocess(spec, frame) for frame in raw])
    return file.preprocess(spec, raw)


def preprocess_target(output: OutputBranchSpec, raw: object) -> Tensor:
    """Return the training target (*shape) of an output branch's generator for a decoded medium."""
    return GENERATORS[type(output.generator)].preprocess(output.generator, raw)


def published_tokenizer(spec: ModelSpec, *, weights: Weights) -> PreTrainedTokenizerBase:
    """Load the backbone's tokenizer unchanged; with random weights, build a byte tokenizer."""
    if weights == "random":
        return byte_tokenizers.plain()
    return load_tokenizer(spec.backbone.weights)


def build_tokenizer(spec: ModelSpec, *, weights: Weights) -> PreTrainedTokenizerBase:
    """Return the backbone's tokenizer, set up for texts that are data."""
    tokenizer = published_tokenizer(spec, weights=weights)
    if tokenizer.pad_token_id is None:  # padding is masked, so its id is irrelevant
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    # Texts are data: "</s>" in a web page's caption must not end a sequence.
    tokenizer.split_special_tokens = True
    return tokenizer


def build_text_tokenizer(spec: ModelSpec, *, weights: Weights) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of projectors that read the instruction; None if none does.

    Raises:
        SpecError: they have different tokenizers, or theirs cannot be loaded.
    """
    names = {
        branch.projector.tokenizer
        for branch in spec.inputs
        if isinstance(branch.projector, QFormer) and branch.projector.reads_text
    }
    if not names:
        return None
    if len(names) > 1:
        raise SpecError(f"inputs: projectors have tokenizers {sorted(names)}, must share one")
    if weights == "random":
        return byte_tokenizers.bert_style()
    return load_tokenizer(names.pop())


def build_caption_tokenizers(
    outputs: Sequence[OutputBranchSpec], *, weights: Weights
) -> dict[str, CaptionTokenizer]:
    """Return, by kind (`to_image`), what turns a caption into a generator's ids."""
    return {
        output.kind: partial(
            GENERATORS[type(output.generator)].caption_ids,
            output.generator,
            GENERATORS[type(output.generator)].tokenizers(output.generator, weights=weights),
        )
        for output in outputs
    }
