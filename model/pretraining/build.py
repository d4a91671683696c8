"""Build the models of stages before MM-PT, and the tokenizer of their sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model import byte_tokenizers
from model.build import BACKBONES, DTYPES, build_input_branch, build_reference
from model.input_projectors import pformer, qformer
from model.pretraining.image_text import ImageTextModel
from model.pretraining.sentences import SentenceModel
from model.reward_lm import HEAD
from model.spec import InputBranchSpec, ModelSpec, SpecError, Stage
from model.spec.init import ImageTextInit, SentenceInit
from model.spec.qformer import QFormer
from model.spec.system import InitStage
from model.weights import Weights, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class SentenceReader:
    """Tokenizes a stage's sentences for a Q-Former's text branch or a P-Former.

    Args:
        tokenizer: of the Q-Former or P-Former.
        max_text: length to which sentences are truncated, in tokens.
        kind: of the medium that a sentence describes.
        pairs: whether the stage only uses sentences that describe a medium.
    """

    tokenizer: PreTrainedTokenizerBase
    max_text: int
    kind: str
    pairs: bool

    def ids(self, sentence: str) -> tuple[int, ...]:
        """Return the ids of a sentence, truncated, with `[CLS]` before and `[SEP]` after it."""
        ids: list[int] = self.tokenizer(sentence, truncation=True, max_length=self.max_text)[
            "input_ids"
        ]
        return tuple(ids)


def build_init(
    spec: ModelSpec, stage: InitStage, *, weights: Weights, seed: int = 0
) -> ImageTextModel | SentenceModel:
    """Build the component that a stage before MM-PT trains, and the frozen ones it needs.

    Args:
        spec: of the whole model.
        stage: its objective, reference and precision are used.
        weights: `pretrained` loads the frozen components and the BERT for initialisation.
        seed: of all weights that are not loaded.

    Raises:
        SpecError: the stage does not fit the model, or weights that cannot be loaded.
    """
    torch.manual_seed(seed)
    if isinstance(stage.objective, SentenceInit):
        return _sentence_model(spec, stage, stage.objective, weights)
    return _image_text_model(spec, stage, stage.objective, weights)


def _image_text_model(
    spec: ModelSpec, stage: InitStage, objective: ImageTextInit, weights: Weights
) -> ImageTextModel:
    branch = _owner(spec, objective.modality)
    projector_spec = _qformer_spec(branch)
    # This stage produces what would otherwise be loaded: the Q-Former is initialised from BERT.
    projector_spec = replace(projector_spec, text_branch=True, weights="")
    untrained = replace(branch, projector=projector_spec, encoder_of=None)
    dtype = DTYPES[stage.precision]
    modules = build_input_branch(untrained, spec.backbone.width, weights, dtype)
    if weights == "pretrained" and objective.bert:
        projector = modules["projector"]
        assert isinstance(projector, qformer.QFormerProjector)
        init_qformer_from_bert(projector.qformer, projector.spec, objective.bert)
    reference = None
    if stage.reference is not None:
        reference = build_reference(spec, stage.reference, weights=weights)
    return ImageTextModel(objective, untrained, modules, reference).to(dtype)


def _sentence_model(
    spec: ModelSpec, stage: InitStage, objective: SentenceInit, weights: Weights
) -> SentenceModel:
    branch = _owner(spec, objective.modality)
    dtype = DTYPES[stage.precision]
    backbone = BACKBONES[type(spec.backbone)].build(spec.backbone, weights=weights, dtype=dtype)
    if stage.recompute:
        backbone.activation_checkpointing_enable({"use_reentrant": False})
    module = pformer.build(objective.pformer, prompts=branch.tokens, width_out=spec.backbone.width)
    if weights == "pretrained" and objective.bert:
        pformer.init_from_bert(module, objective.bert)
    tokenizer = build_sentence_tokenizer(objective.pformer.tokenizer, weights=weights)
    return SentenceModel(objective, spec, backbone, module, tokenizer.mask_token_id).to(dtype)


def _owner(spec: ModelSpec, modality: str) -> InputBranchSpec:
    branch = spec.input_branch(modality)
    if branch.projector_of is not None:
        raise SpecError(
            f"init: input branch {modality!r} shares its projector; use {branch.projector_of!r}"
        )
    return branch


def _qformer_spec(branch: InputBranchSpec) -> QFormer:
    if not isinstance(branch.projector, QFormer):
        raise SpecError(
            f"init: input branch {branch.modality!r} has a projector {branch.projector.kind!r}, "
            "must be 'qformer'"
        )
    return branch.projector


def init_qformer_from_bert(module: qformer.QueryingTransformer, spec: QFormer, source: str) -> None:
    """Copy a published BERT into a Q-Former; queries and cross-attention keep their new weights.

    The feed-forward layers of both branches get the same weights (Li et al. 2023, §3.1); the token
    `[DEC]`, which BERT lacks, keeps its new embedding.

    Raises:
        SpecError: there are no such weights, or their sizes differ.
    """
    own = module.state_dict()
    for name, tensor in _bert_to_qformer(pformer.bert_state(source), spec).items():
        if name not in own:
            continue
        rows = len(tensor)
        # BERT's vocabulary may be smaller: `[DEC]` is the last token of the Q-Former's.
        target = own[name][:rows] if name == "words.word_embeddings.weight" else own[name]
        if tensor.shape != target.shape:
            raise SpecError(
                f"weights {source!r}: {name} is {tuple(tensor.shape)}, "
                f"expected {tuple(own[name].shape)}"
            )
        target.copy_(tensor)


def _bert_to_qformer(state: Mapping[str, Tensor], spec: QFormer) -> dict[str, Tensor]:
    """Rename BERT's tensors to a Q-Former's; feed-forward layers are used for both branches."""
    renamed = {f"qformer.{name}": tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        for layer in ("intermediate", "output"):
            infix = f".{layer}."
            if infix in name and ".attention." not in name:
                renamed[f"qformer.{name.replace(infix, f'.{layer}_query.')}"] = tensor
    return qformer.convert_state_dict(renamed, spec)


def sentence_reader(spec: ModelSpec, stage: Stage, *, weights: Weights) -> SentenceReader | None:
    """Return the tokenizer of a stage's sentences, or None if it reads none."""
    if isinstance(stage, InitStage):
        kind, length = stage.objective.modality, stage.objective.max_text
        if isinstance(stage.objective, SentenceInit):
            source = stage.objective.pformer.tokenizer
        else:
            source = _qformer_spec(spec.input_branch(kind)).tokenizer
    elif stage.reference is not None:
        kind = spec.inputs[0].modality
        source, length = stage.reference.pformer.tokenizer, stage.reference.pformer.max_text
    else:
        return None
    tokenizer = build_sentence_tokenizer(source, weights=weights)
    pairs = isinstance(stage, InitStage)
    return SentenceReader(tokenizer=tokenizer, max_text=length, kind=kind, pairs=pairs)


def build_sentence_tokenizer(source: str, *, weights: Weights) -> PreTrainedTokenizerBase:
    """Load BERT's tokenizer; without a source or with random weights, build a byte tokenizer."""
    if source and weights == "pretrained":
        tokenizer = load_tokenizer(source)
    else:
        tokenizer = byte_tokenizers.bert_style()
    tokenizer.split_special_tokens = True  # texts are data
    return tokenizer


def is_stage_only(spec: ModelSpec, stage: Stage, name: str) -> bool:
    """Return whether only this stage has a weight: of a head, or of an unused text branch."""
    if name.startswith(HEAD):  # of a reward model
        return True
    if not isinstance(stage, InitStage):
        return False
    if name.startswith("heads."):
        return True
    if isinstance(stage.objective, SentenceInit):
        return False
    projector = _qformer_spec(spec.input_branch(stage.objective.modality))
    _, found, own = name.partition(".qformer.")
    return bool(found) and not projector.has_text and qformer.in_text_branch(own)
