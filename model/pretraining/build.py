"""Spec to modules for the stages before MM-PT, and the tokenizer that reads their sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model import byte_tokenizers
from model.aligned_lm import make_reference
from model.build import BACKBONES, DTYPES, own_parts
from model.input_projectors import pformer, qformer
from model.pretraining.image_text import ImageTextModel
from model.pretraining.sentences import SentenceModel
from model.spec import InputBranchSpec, ModelSpec, SpecError, Stage
from model.spec.init import ImageTextInit, SentenceInit
from model.spec.qformer import QFormer
from model.spec.system import InitStage
from model.weights import Weights, load_transformers


@dataclass(frozen=True, kw_only=True)
class SentenceReader:
    """What reads the sentences of a stage: a Q-Former's text half, or a P-Former.

    Args:
        tokenizer: its own.
        max_text: tokens of a sentence that are read.
        kind: of medium that a sentence belongs to.
        pairs: whether a sentence without a medium is of no use to the stage.
    """

    tokenizer: PreTrainedTokenizerBase
    max_text: int
    kind: str
    pairs: bool

    def ids(self, sentence: str) -> tuple[int, ...]:
        """Return the ids of a sentence, cut, with `[CLS]` before and `[SEP]` behind it."""
        ids: list[int] = self.tokenizer(sentence, truncation=True, max_length=self.max_text)[
            "input_ids"
        ]
        return tuple(ids)


def build_init(
    spec: ModelSpec, stage: InitStage, *, weights: Weights, seed: int = 0
) -> ImageTextModel | SentenceModel:
    """Build what a stage before MM-PT trains, and the frozen parts that it needs.

    Args:
        spec: the model's slots.
        stage: which part, by which losses, in which precision.
        weights: `pretrained` loads the frozen parts and the BERT to start from.
        seed: of everything that is not loaded.

    Raises:
        SpecError: the stage does not fit the model, or weights that cannot be had.
    """
    torch.manual_seed(seed)
    if isinstance(stage.objective, SentenceInit):
        return _sentences(spec, stage, stage.objective, weights)
    return _image_text(spec, stage, stage.objective, weights)


def _image_text(
    spec: ModelSpec, stage: InitStage, objective: ImageTextInit, weights: Weights
) -> ImageTextModel:
    slot = _owner(spec, objective.modality)
    former = _qformer(slot)
    # The published Q-Former is what this stage makes; it starts from BERT instead.
    bare = replace(slot, projector=replace(former, text_branch=True, weights=""), encoder_of=None)
    dtype = DTYPES[stage.precision]
    parts = own_parts(bare, spec.backbone.width, weights, dtype)
    if weights == "pretrained" and objective.bert:
        projector = parts["projector"]
        assert isinstance(projector, qformer.QFormerProjector)
        start_qformer(projector.qformer, projector.spec, objective.bert)
    reference = None
    if stage.reference is not None:
        reference = make_reference(spec, stage.reference, weights=weights)
    return ImageTextModel(objective, bare, parts, reference).to(dtype)


def _sentences(
    spec: ModelSpec, stage: InitStage, objective: SentenceInit, weights: Weights
) -> SentenceModel:
    slot = _owner(spec, objective.modality)
    dtype = DTYPES[stage.precision]
    backbone = BACKBONES[type(spec.backbone)].build(spec.backbone, weights=weights, dtype=dtype)
    if stage.recompute:
        backbone.activation_checkpointing_enable({"use_reentrant": False})
    module = pformer.build(objective.pformer, prompts=slot.tokens, width_out=spec.backbone.width)
    if weights == "pretrained" and objective.bert:
        pformer.start_from_bert(module, objective.bert)
    tokenizer = build_sentence_tokenizer(objective.pformer.tokenizer, weights=weights)
    return SentenceModel(objective, spec, backbone, module, tokenizer.mask_token_id).to(dtype)


def _owner(spec: ModelSpec, modality: str) -> InputBranchSpec:
    slot = spec.slot(modality)
    if slot.projector_of is not None:
        raise SpecError(
            f"init: slot {modality!r} shares its projector; name {slot.projector_of!r} instead"
        )
    return slot


def _qformer(slot: InputBranchSpec) -> QFormer:
    if not isinstance(slot.projector, QFormer):
        raise SpecError(
            f"init: slot {slot.modality!r} has a projector {slot.projector.kind!r}, want a qformer"
        )
    return slot.projector


def start_qformer(module: qformer.QueryingTransformer, spec: QFormer, source: str) -> None:
    """Copy a published BERT into a Q-Former; queries and cross-attention stay new.

    Both halves of each layer start from the same weights (Li et al. 2023, §3.1), and the token
    `[DEC]`, which BERT lacks, stays new.

    Raises:
        SpecError: no such weights, or of other sizes.
    """
    own = module.state_dict()
    for name, tensor in _of_qformer(pformer.bert_state(source), spec).items():
        if name not in own:
            continue
        rows = len(tensor)
        # Its vocabulary may be the smaller one: `[DEC]` stands at the end of the Q-Former's.
        room = own[name][:rows] if name == "words.word_embeddings.weight" else own[name]
        if tensor.shape != room.shape:
            raise SpecError(
                f"weights {source!r}: {name} is {tuple(tensor.shape)}, "
                f"want {tuple(own[name].shape)}"
            )
        room.copy_(tensor)


def _of_qformer(state: Mapping[str, Tensor], spec: QFormer) -> dict[str, Tensor]:
    """Rename BERT's tensors to a Q-Former's, the feed-forward ones twice."""
    renamed = {f"qformer.{name}": tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        for half in ("intermediate.", "output."):
            place = f".{half}"
            if place in name and ".attention." not in name:
                renamed[f"qformer.{name.replace(place, f'.{half[:-1]}_query.')}"] = tensor
    return qformer.convert_state_dict(renamed, spec)


def sentence_reader(spec: ModelSpec, stage: Stage, *, weights: Weights) -> SentenceReader | None:
    """Return what reads the sentences of a stage, or None where nothing does."""
    if isinstance(stage, InitStage):
        kind, length = stage.objective.modality, stage.objective.max_text
        if isinstance(stage.objective, SentenceInit):
            source = stage.objective.pformer.tokenizer
        else:
            source = _qformer(spec.slot(kind)).tokenizer
    elif stage.reference is not None:
        kind = spec.inputs[0].modality
        source, length = stage.reference.pformer.tokenizer, stage.reference.pformer.max_text
    else:
        return None
    tokenizer = build_sentence_tokenizer(source, weights=weights)
    pairs = isinstance(stage, InitStage)
    return SentenceReader(tokenizer=tokenizer, max_text=length, kind=kind, pairs=pairs)


def build_sentence_tokenizer(source: str, *, weights: Weights) -> PreTrainedTokenizerBase:
    """Load BERT's tokenizer; without a source or with random weights, one of bytes."""
    if source and weights == "pretrained":
        tokenizer: PreTrainedTokenizerBase = load_transformers(AutoTokenizer, source)
    else:
        tokenizer = byte_tokenizers.like_bert_s()
    tokenizer.split_special_tokens = True  # texts are data
    return tokenizer


def only_here(spec: ModelSpec, stage: Stage, name: str) -> bool:
    """Return whether no other stage has this weight: a head, or a text half that nobody reads."""
    if not isinstance(stage, InitStage):
        return False
    if name.startswith("heads."):
        return True
    if isinstance(stage.objective, SentenceInit):
        return False
    former = _qformer(spec.slot(stage.objective.modality))
    _, found, own = name.partition(".qformer.")
    return bool(found) and not former.has_text and qformer.of_text(own)
