"""The losses of every stage, as a list of `LossTerm`s; `loss_terms` is where one is added.

A loss returns a sum and a count. The step loop divides each sum by its own count over all ranks and
micro-batches, so the gradient does not depend on how the global batch is split.

Shapes: m, o target positions, v vocabulary; b rows of this rank, g rows of all ranks, x vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.batch import IGNORED, Batch
from model.multimodal_lm import MultimodalOutput
from model.pretraining.image_text import ImageTextOutput
from model.pretraining.sentences import SentenceOutput
from model.spec import ModelSpec, Stage
from model.spec.init import ImageTextInit, SentenceInit
from model.spec.output_branches import Generation, OutputBranchSpec
from model.spec.rlhf import Dress
from model.spec.system import InitStage, RlhfStage
from pipeline.train.loss_term import LossSum, LossTerm
from pipeline.train.preference_losses import preference_terms


def loss_terms(spec: ModelSpec, stage: Stage) -> tuple[LossTerm, ...]:
    """Return the loss terms of a stage, in the order in which they are computed."""
    if isinstance(stage, InitStage):
        if isinstance(stage.objective, SentenceInit):
            return sentence_terms(spec, stage.objective)
        terms = image_text_terms(stage.objective)
        if stage.reference is not None:
            kind = stage.objective.modality
            terms += (align_term(spec, kind, stage.reference.weight, _align_image_text),)
        return terms
    if isinstance(stage, RlhfStage) and not isinstance(stage.objective, Dress):
        return preference_terms(stage.objective)
    weight = stage.generation.text if stage.generation else 1.0
    terms = (LossTerm(name="text", weight=weight, count=_count_targets, fn=_text),)
    if stage.z_loss:
        terms += (LossTerm(name="z", weight=stage.z_loss, count=_count_targets, fn=_z),)
    if stage.reference is not None:
        kind = spec.inputs[0].modality
        terms += (align_term(spec, kind, stage.reference.weight, _align_text),)
    if stage.generation is not None:
        for branch in spec.outputs:
            terms += generation_terms(branch, stage.generation.of(branch.modality))
    return terms


def count_losses(terms: Sequence[LossTerm], batch: Batch) -> dict[str, int]:
    """Return the count of each loss of a micro-batch on this rank."""
    return {term.name: term.count(batch) for term in terms}


def compute_losses(terms: Sequence[LossTerm], outputs: object) -> dict[str, LossSum]:
    """Return each loss of a micro-batch, given the model's output."""
    return {term.name: term.fn(outputs) for term in terms}


# ---- the text loss


def text_loss(logits_mv: Tensor, targets_m: Tensor, *, smoothing: float = 0.0) -> LossSum:
    """Cross-entropy of the text, L_txt = CE(LLM(P_X, F_T), t) (survey eq. 2).

    Args:
        logits_mv: in any precision.
        targets_m: token ids.
        smoothing: label smoothing over the vocabulary.

    Returns:
        The sum over the targets in float32 (0, with a gradient of 0, if there are none), their
        number, and the summands.
    """
    losses_m = F.cross_entropy(
        logits_mv.float(), targets_m, reduction="none", label_smoothing=smoothing
    )
    return LossSum(total=losses_m.sum(), count=targets_m.numel(), per_target_m=losses_m.detach())


def _text(outputs: Sequence[Any]) -> LossSum:
    """The text loss of any model whose output begins with logits (o, v) and targets (o,)."""
    return text_loss(outputs[0], outputs[1])


def z_loss(logits_mv: Tensor) -> LossSum:
    """Sum of log² Z over the targets, Z the softmax's denominator (Chowdhery et al. 2022, §5).

    It keeps the logits near 0, where bf16 is precise.
    """
    log_z_m = logits_mv.float().logsumexp(-1)
    return LossSum(total=log_z_m.square().sum(), count=len(log_z_m))


def _z(outputs: Sequence[Any]) -> LossSum:
    """The z-loss of any model whose output begins with logits (o, v)."""
    return z_loss(outputs[0])


def _count_targets(batch: Batch) -> int:
    return int(batch.target_mask.sum())


# ---- MM-PT with a reference P-Former (DLP): L_align


def squared_distance(vectors: Tensor, targets: Tensor) -> LossSum:
    """Squared error against targets that get no gradient; the count is the number of elements.

    Survey eqs. 4 and 5, and DLP's quantization (each prompt to the nearest word embedding of the
    backbone) and alignment (projected tokens to the reference's prompts; Jian et al. 2023, §3.1
    and §3.2).
    """
    difference = vectors.float() - targets.detach().float()
    return LossSum(total=difference.square().sum(), count=vectors.numel())


def align_term(spec: ModelSpec, kind: str, weight: float, fn: Callable[[Any], LossSum]) -> LossTerm:
    """Return DLP's distance between projected tokens and the reference P-Former's prompts.

    Jian et al. 2023, §3.2; BLIText's weights: 100 in MM-PT, 10 in the Q-Former's pre-training.
    """
    return LossTerm(
        name="align",
        weight=weight,
        count=lambda batch: _count_media(batch, kind) * _elements_per_medium(spec, kind),
        fn=fn,
    )


def _align_text(outputs: MultimodalOutput) -> LossSum:
    assert outputs.alignment is not None
    return squared_distance(*outputs.alignment)


def _align_image_text(outputs: ImageTextOutput) -> LossSum:
    assert outputs.tokens_xku is not None
    assert outputs.prompts_xku is not None
    return squared_distance(outputs.tokens_xku, outputs.prompts_xku)


# ---- generation: survey eqs. 4 and 5


def generation_terms(branch: OutputBranchSpec, generation: Generation) -> tuple[LossTerm, ...]:
    """Return eqs. 4 and 5 of one output branch, `to_image.align` and `to_image.denoise`.

    Each is a mean over the elements of a kind of media; one of weight 0 is not computed. The target
    text of eq. 2 then contains the signal tokens.

    Args:
        branch: the modality's.
        generation: the weights of this branch.
    """
    kind = branch.kind
    terms = (
        LossTerm(
            name=f"{kind}.align",
            weight=generation.align,
            count=lambda batch: batch.count(kind) * prod(branch.generator.condition_shape),
            fn=lambda outputs: _align_conditions(outputs, kind),
        ),
        LossTerm(
            name=f"{kind}.denoise",
            weight=generation.denoise,
            count=lambda batch: batch.count(kind) * prod(branch.generator.latent_shape),
            fn=lambda outputs: _denoise(outputs, kind),
        ),
    )
    return tuple(term for term in terms if term.weight)


def _align_conditions(outputs: MultimodalOutput, kind: str) -> LossSum:
    """Alignment loss L_mse = ‖H_X − τ_X(t)‖² (survey eq. 4)."""
    generated = outputs.generation.get(kind)
    if generated is None:
        return _no_media(outputs)
    return squared_distance(generated.condition_embeds_glw, generated.target_embeds_glw)


def _denoise(outputs: MultimodalOutput, kind: str) -> LossSum:
    """Latent diffusion loss L_gen = E‖ε − ε_X(z_t, t, H_X)‖² (survey eq. 5)."""
    generated = outputs.generation.get(kind)
    if generated is None or not generated.noise_prediction:
        return _no_media(outputs)
    return squared_distance(*generated.noise_prediction)


def _no_media(outputs: MultimodalOutput) -> LossSum:
    """The loss of a kind of media that no rank has in a micro-batch."""
    return LossSum(total=outputs.logits_ov.new_zeros(()), count=0)


# ---- before MM-PT: Q-Former and P-Former


def image_text_terms(init: ImageTextInit) -> tuple[LossTerm, ...]:
    """Return BLIP-2's stage 1, ITC + ITM + ITG (Li et al. 2023, §3.2).

    ITC is the mean of both directions. ITC and ITM compare the pairs of one micro-step of all
    ranks, see `contrastive_loss`; each rank draws ITM's negatives for its own rows.
    """
    kind, smoothing = init.modality, init.label_smoothing

    def itc(outputs: ImageTextOutput) -> LossSum:
        rows = (outputs.positives_b, outputs.valid_b, outputs.valid_g)
        to_texts = contrastive_loss(outputs.to_texts_bg, *rows, smoothing=smoothing)
        to_images = contrastive_loss(outputs.to_images_bg, *rows, smoothing=smoothing)
        return LossSum(total=(to_texts.total + to_images.total) / 2, count=to_texts.count)

    def itm(outputs: ImageTextOutput) -> LossSum:
        return matching_loss(outputs.matching_x2, outputs.matches_x)

    def itg(outputs: ImageTextOutput) -> LossSum:
        return text_loss(outputs.words_mv, outputs.targets_m, smoothing=smoothing)

    def count_words(batch: Batch) -> int:
        if kind not in batch.media or batch.sentences is None:
            return 0
        return int(batch.sentences.mask_bl[batch.media[kind].rows_m, 1:].sum())

    return (
        LossTerm(name="itc", weight=1.0, count=lambda batch: _count_media(batch, kind), fn=itc),
        LossTerm(name="itm", weight=1.0, count=lambda batch: 3 * _count_media(batch, kind), fn=itm),
        LossTerm(name="itg", weight=1.0, count=count_words, fn=itg),
    )


def sentence_terms(spec: ModelSpec, init: SentenceInit) -> tuple[LossTerm, ...]:
    """Return a P-Former's losses: contrast + quantization + text (Jian et al. 2023, §3.1).

    The contrast separates a sentence from all others of one micro-step of all ranks; its only
    positive is itself. BLIText weights all three alike.
    """
    kind, smoothing = init.modality, init.label_smoothing

    def contrast(outputs: SentenceOutput) -> LossSum:
        rows = (outputs.positives_b, outputs.valid_b, outputs.valid_g)
        return contrastive_loss(outputs.similar_bg, *rows, smoothing=smoothing)

    def quantization(outputs: SentenceOutput) -> LossSum:
        return squared_distance(outputs.prompts_xu, outputs.words_xu)

    def text(outputs: SentenceOutput) -> LossSum:
        return text_loss(outputs.logits_mv, outputs.targets_m)

    def count_elements(batch: Batch) -> int:
        return _count_media(batch, kind) * _elements_per_medium(spec, kind)

    def count_sentences(batch: Batch) -> int:
        return _count_media(batch, kind)

    return (
        LossTerm(name="contrast", weight=1.0, count=count_sentences, fn=contrast),
        LossTerm(name="vq", weight=1.0, count=count_elements, fn=quantization),
        LossTerm(name="text", weight=1.0, count=_count_targets, fn=text),
    )


def contrastive_loss(
    similarity_bg: Tensor,
    positives_b: Tensor,
    valid_b: Tensor,
    valid_g: Tensor,
    *,
    smoothing: float = 0.0,
) -> LossSum:
    """Cross-entropy of identifying the positive among the rows of all ranks (InfoNCE).

    It depends on the samples of all ranks in one micro-step. Any number of ranks gives the same
    value for the same samples, but gradient accumulation does not replace a larger micro-batch.

    Args:
        similarity_bg: divided by the temperature.
        positives_b: the index of each row's positive.
        valid_b: which rows of this rank are samples; the others (dummies) have no loss.
        valid_g: the same for the rows of all ranks; dummies are not negatives.
        smoothing: label smoothing over the valid rows.

    Returns:
        The sum over this rank's samples, and their number.
    """
    logits_bg = similarity_bg.float().masked_fill(~valid_g, -torch.inf)
    log_probs_bg = logits_bg.log_softmax(1).masked_fill(~valid_g, 0.0)
    positive_b = log_probs_bg.gather(1, positives_b[:, None])[:, 0]
    mean_b = log_probs_bg.sum(1) / valid_g.sum().clamp(min=1)
    loss_b = -(1 - smoothing) * positive_b - smoothing * mean_b
    return LossSum(total=torch.where(valid_b, loss_b, 0.0).sum(), count=int(valid_b.sum()))


def matching_loss(logits_x2: Tensor, matches_x: Tensor) -> LossSum:
    """Cross-entropy of telling matched from unmatched pairs (ITM; BLIP-2, Li et al. 2023, §3.2).

    Args:
        logits_x2: of "unmatched" and "matched".
        matches_x: 1, 0, or `IGNORED` where there is no such pair: for dummies, and for negatives
            where a micro-step has one sample only.

    Returns:
        The sum over all pairs, and three times the number of matched ones: each has two negatives.
    """
    total = F.cross_entropy(logits_x2.float(), matches_x, ignore_index=IGNORED, reduction="sum")
    return LossSum(total=total, count=3 * int((matches_x == 1).sum()))


def _count_media(batch: Batch, kind: str) -> int:
    """Return the number of media of a kind; in these stages each row has at most one."""
    return len(batch.media[kind].rows_m) if kind in batch.media else 0


def _elements_per_medium(spec: ModelSpec, kind: str) -> int:
    """Return the number of elements of one medium's tokens in the backbone."""
    return spec.input_branch(kind).tokens * spec.backbone.width
