"""Our systems as transformers' classes: which one, its configuration, and our names of its tensors.

The reverse of the other files here, which turn transformers' configurations into specs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import transformers
from transformers import Blip2Config, InstructBlipConfig, LlavaConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from model.backbones.hf import hf_config
from model.backbones.llama import llama_config
from model.backbones.opt import opt_config
from model.backbones.t5 import t5_config
from model.build import build_on_meta
from model.convert import blip, llava
from model.convert.wiring import our_name
from model.encoders.clip import clip_config
from model.encoders.eva_clip import eva_config
from model.encoders.hf_tower import config_of
from model.input_projectors.qformer import qformer_config
from model.spec import ClipVision, InputBranchSpec, Llama, Lora, Mlp, ModelSpec, SpecError, Splice
from model.spec.backbones import T5, Backbone, Opt
from model.spec.hf_backbones import HfCausal
from model.spec.hf_encoders import HfVision
from model.spec.image import EvaClip
from model.spec.image_processor import ImageProcessor
from model.spec.input_branches import Encoder
from model.spec.peft import QLora
from model.spec.qformer import QFormer
from model.spec.system import Stage


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A class of transformers that computes what a system does.

    Args:
        architecture: the class.
        config: of its model. The placeholder's id is set when it is written.
        names: prefixes of tensor names, theirs → ours; the first match applies.
        published: the same, theirs → published. transformers 5 renames a published checkpoint's
            tensors when it loads them, and other programs (vLLM) know the published names alone.
        processor: class of its processor.
        processor_fields: further arguments of the processor.
        pictures: how a picture becomes pixels.
        left_out: modalities without modules of their own, which the class does not take.
    """

    architecture: str
    config: PretrainedConfig
    names: Sequence[tuple[str, str]]
    published: Sequence[tuple[str, str]]
    processor: str
    processor_fields: Mapping[str, Any]
    pictures: ImageProcessor
    left_out: tuple[str, ...] = ()

    def our_name(self, name: str) -> str:
        """Return our name of one of their tensors."""
        return our_name(self.names, name)

    def published_name(self, name: str) -> str:
        """Return the name that one of their tensors has in a checkpoint."""
        return our_name(self.published, name)

    def build(self) -> Any:  # noqa: ANN401 -- their class
        """Return their model on the meta device."""
        with torch.device("meta"):
            return getattr(transformers, self.architecture)(self.config)


def find_layout(spec: ModelSpec, stage: Stage) -> Layout:
    """Return the layout of a system.

    Raises:
        SpecError: transformers has no class for it; says why.
    """
    none = "transformers has no class for "
    if stage.peft is not None and not isinstance(stage.peft, Lora | QLora):
        raise SpecError(f"{none}a backbone with {stage.peft.kind!r}")
    if stage.output_branches(spec):
        raise SpecError(f"{none}output branches")
    if not isinstance(spec.fusion, Splice):
        raise SpecError(f"{none}fusion {spec.fusion.kind!r}")
    branches = [branch for branch in spec.inputs if branch.modality == "image"]
    others = [branch for branch in spec.inputs if branch.modality != "image"]
    # InstructBLIP's videos: frames by the same modules, of which transformers' class knows nothing.
    own = [each for each in others if each.encoder_of is None or each.projector_of is None]
    layouts = (make(spec, branch) for branch in branches for make in (_llava, _blip))
    layout = next(filter(None, layouts), None)
    if layout is None or own:
        parts = (f"{b.modality}: {b.encoder.kind} + {b.projector.kind}" for b in spec.inputs)
        raise SpecError(f"{none}{'; '.join(parts) or 'text alone'} before {spec.backbone.kind}")
    if branches[0].before or branches[0].after:
        raise SpecError(f"{none}texts around a medium ({branches[0].before!r})")
    layout.pictures.to_config()  # raises SpecError where no class gives these pixels
    _check_tensors(layout, spec, stage)
    return replace(layout, left_out=tuple(branch.modality for branch in others))


def _check_tensors(layout: Layout, spec: ModelSpec, stage: Stage) -> None:
    """Raise SpecError unless both models have the same tensors, but for their names."""
    plain = replace(stage, peft=None, recompute=False, reference=None)
    ours = build_on_meta(spec, plain).state_dict()
    unused = set(ours)
    for name, tensor in layout.build().state_dict().items():
        own = layout.our_name(name)
        if own not in ours or ours[own].shape != tensor.shape:
            raise SpecError(f"{layout.architecture} of transformers has {name}, the model has not")
        unused.discard(own)
    if unused:
        raise SpecError(f"{layout.architecture} of transformers has no {min(unused)}")


def _llava(spec: ModelSpec, images: InputBranchSpec) -> Layout | None:
    """LLaVA: a picture's patches of one layer, through two linear ones."""
    text = _text_config(spec.backbone)
    tower = _tower(images.encoder)
    if images.projector != Mlp() or text is None or spec.backbone.seq2seq or tower is None:
        return None
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        vision_feature_layer=tower.layer,
        vision_feature_select_strategy=tower.select,
        image_seq_length=images.tokens,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )
    return Layout(
        architecture="LlavaForConditionalGeneration",
        config=config,
        names=(
            *llava.tower_names("vision_tower", llava.ENCODER),
            ("model.language_model.", f"backbone.{_decoder_name(text)}."),
            *llava.NAMES,
        ),
        published=(
            ("model.vision_tower.", f"vision_tower.{tower.published}"),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
        ),
        processor="LlavaProcessor",
        processor_fields={
            "patch_size": tower.patch_size,
            "vision_feature_select_strategy": tower.select,
            "num_additional_image_tokens": tower.prefix,
        },
        pictures=tower.pictures,
    )


_WRAPPED = ("clip_vision_model", "siglip_vision_model")
"""Encoders whose published tensors have names with `vision_model.`."""


class _Tower(NamedTuple):
    """A vision encoder as LLaVA has one.

    Attributes:
        config: of its class.
        layer: index of the hidden state that is returned.
        select: `default` drops the first token, `full` none.
        patch_size: side of a patch in pixels.
        prefix: tokens before the patches.
        pictures: how a picture becomes pixels.
        published: what its names begin with in published checkpoints.
    """

    config: PretrainedConfig
    layer: int
    select: str
    patch_size: int
    prefix: int
    pictures: ImageProcessor
    published: str = "vision_model."


def _tower(encoder: Encoder) -> _Tower | None:
    """Return an encoder as LLaVA would have it; None if it cannot.

    Raises:
        SpecError: its features are of no hidden state.
    """
    if isinstance(encoder, ClipVision) and encoder.attend_cls:
        return _Tower(
            config=clip_config(encoder),
            layer=encoder.feature_layer,
            select="full" if encoder.keep_cls else "default",
            patch_size=encoder.patch_size,
            prefix=1,
            pictures=encoder.processor,
        )
    if not isinstance(encoder, HfVision) or "patch_size" not in encoder.config:
        return None
    drops = encoder.select == "patches" and encoder.prefix == 1
    if not drops and encoder.select != "all" and encoder.prefix:
        return None
    if encoder.feature_layer is None and encoder.model_type != "clip_vision_model":
        raise SpecError(
            "LLaVA of transformers takes a hidden state before the encoder's last norm; set "
            "model.inputs.image.encoder.feature_layer=-1 before training for its layout"
        )
    config = config_of(encoder.config)
    config.vision_use_head = False  # SigLIP's, of which our tower has no weights
    if "image_size" in encoder.config:
        config.image_size = encoder.processor.side
    return _Tower(
        config=config,
        layer=-1 if encoder.feature_layer is None else encoder.feature_layer,
        select="default" if drops else "full",
        patch_size=encoder.config["patch_size"],
        prefix=encoder.prefix,
        pictures=encoder.processor,
        published="vision_model." if encoder.model_type in _WRAPPED else "",
    )


def _blip(spec: ModelSpec, images: InputBranchSpec) -> Layout | None:
    """BLIP-2: queries of a Q-Former; InstructBLIP: of one that reads the instruction, too."""
    encoder, projector, text = images.encoder, images.projector, _text_config(spec.backbone)
    if not isinstance(encoder, EvaClip) or not isinstance(projector, QFormer) or text is None:
        return None
    if not encoder.keep_cls:
        return None
    instructed = projector.reads_text
    config = (InstructBlipConfig if instructed else Blip2Config)(
        vision_config=eva_config(encoder),
        qformer_config=qformer_config(projector, encoder.width),
        text_config=text,
        num_query_tokens=projector.queries,
    )
    name = "InstructBlip" if instructed else "Blip2"
    return Layout(
        architecture=f"{name}ForConditionalGeneration",
        config=config,
        names=blip.NAMES,
        published=(),
        processor=f"{name}Processor",
        processor_fields={"num_query_tokens": projector.queries},
        pictures=encoder.processor,
    )


def _text_config(spec: Backbone) -> PretrainedConfig | None:
    """Return transformers' configuration of a backbone; None if it has another architecture."""
    makers: Mapping[type, Any] = {
        Llama: llama_config,
        Opt: opt_config,
        T5: t5_config,
        HfCausal: hf_config,
    }
    if type(spec) not in makers:
        return None
    config: PretrainedConfig = makers[type(spec)](spec)
    config.use_cache = True
    return config


def _decoder_name(text: PretrainedConfig) -> str:
    """Return the name of the decoder in the class of a causal language model."""
    name: str = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)].base_model_prefix
    return name
