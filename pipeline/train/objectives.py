"""What the stages minimise that do more than say text: those before MM-PT, DLP's, and drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from model.aligned_lm import AlignedOutput
from model.batch import Batch
from model.generative_lm import GenerativeLMOutput
from model.pretraining.image_text import ImageTextOutput
from model.pretraining.sentences import SentenceOutput
from model.spec import ModelSpec, Stage
from model.spec.init import ImageTextInit, SentenceInit
from model.spec.output_branches import Generation
from model.spec.system import InitStage
from pipeline.train.losses import (
    Loss,
    Objective,
    TextObjective,
    contrastive_loss,
    matching_loss,
    squared_distance,
    text_loss,
)


def objective_of(spec: ModelSpec, stage: Stage) -> Objective:
    """Return what a stage of a model minimises."""
    align = stage.reference.weight if stage.reference else None
    if isinstance(stage, InitStage):
        if isinstance(stage.objective, SentenceInit):
            return SentenceObjective(spec=spec, stage=stage.objective)
        return ImageTextObjective(spec=spec, stage=stage.objective, align=align)
    if stage.generation is not None:
        return DrawingObjective(spec=spec, generation=stage.generation)
    return TextObjective() if align is None else AlignedObjective(spec=spec, align=align)


@dataclass(frozen=True, kw_only=True)
class ImageTextObjective:
    """BLIP-2's stage 1, ITC + ITM + ITG (Li et al. 2023, §3.2), perhaps with DLP's alignment.

    ITC is the mean of both directions; it and ITM compare the pairs of one forward pass of all
    ranks, see `contrastive_loss`. ITM's wrong pairs are drawn by each rank for its own rows.

    Args:
        spec: the model.
        stage: the losses' figures.
        align: weight of the distance between projected tokens and reference (BLIText: 10), or None.
    """

    spec: ModelSpec
    stage: ImageTextInit
    align: float | None

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weight of each loss."""
        align = {} if self.align is None else {"align": self.align}
        return {"itc": 1.0, "itm": 1.0, "itg": 1.0} | align

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Return the pairs, three times as many for ITM, the words, and the aligned numbers."""
        kind = self.stage.modality
        pairs, words = _rows(batch, kind), 0
        if kind in batch.media and batch.sentences is not None:
            words = int(batch.sentences.mask_bl[batch.media[kind].rows_m, 1:].sum())
        counts = {"itc": pairs, "itm": 3 * pairs, "itg": words}
        if self.align is not None:
            counts["align"] = pairs * _numbers(self.spec, kind)
        return counts

    def losses(self, outputs: ImageTextOutput) -> Mapping[str, Loss]:
        """Return each loss."""
        rows = (outputs.positives_b, outputs.valid_b, outputs.valid_g)
        smoothing = self.stage.label_smoothing
        to_texts = contrastive_loss(outputs.to_texts_bg, *rows, smoothing=smoothing)
        to_images = contrastive_loss(outputs.to_images_bg, *rows, smoothing=smoothing)
        losses = {
            "itc": Loss((to_texts.total + to_images.total) / 2, to_texts.number),
            "itm": matching_loss(outputs.matching_x2, outputs.matches_x),
            "itg": text_loss(outputs.words_mv, outputs.targets_m, smoothing=smoothing),
        }
        if outputs.tokens_xku is not None and outputs.prompts_xku is not None:
            losses["align"] = squared_distance(outputs.tokens_xku, outputs.prompts_xku)
        return losses


@dataclass(frozen=True, kw_only=True)
class SentenceObjective:
    """A P-Former's training: contrast + quantisation + text (Jian et al. 2023, §3.1).

    The contrast drives a sentence away from all others of one forward pass of all ranks; with
    itself it is alike by definition.
    """

    spec: ModelSpec
    stage: SentenceInit

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weight of each loss (BLIText: all the same)."""
        return {"contrast": 1.0, "vq": 1.0, "text": 1.0}

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Return the sentences, the numbers in their prompts, and the words."""
        sentences = _rows(batch, self.stage.modality)
        return {
            "contrast": sentences,
            "vq": sentences * _numbers(self.spec, self.stage.modality),
            "text": int(batch.target_mask.sum()),
        }

    def losses(self, outputs: SentenceOutput) -> Mapping[str, Loss]:
        """Return each loss."""
        rows = (outputs.positives_b, outputs.valid_b, outputs.valid_g)
        smoothing = self.stage.label_smoothing
        return {
            "contrast": contrastive_loss(outputs.similar_bg, *rows, smoothing=smoothing),
            "vq": squared_distance(outputs.prompts_xu, outputs.words_xu),
            "text": text_loss(outputs.logits_mv, outputs.targets_m),
        }


@dataclass(frozen=True, kw_only=True)
class AlignedObjective:
    """DLP's MM-PT: the text, and the projected tokens' distance to the reference's prompts.

    Jian et al. 2023, §3.2.

    Args:
        spec: the model.
        align: weight of the distance (BLIText: 100).
    """

    spec: ModelSpec
    align: float

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weight of each loss."""
        return {"text": 1.0, "align": self.align}

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Return the words, and the numbers that are aligned."""
        kind = self.spec.inputs[0].modality
        numbers = _rows(batch, kind) * _numbers(self.spec, kind)
        return {"text": int(batch.target_mask.sum()), "align": numbers}

    def losses(self, outputs: AlignedOutput) -> Mapping[str, Loss]:
        """Return each loss."""
        return {
            "text": text_loss(outputs.logits_ov, outputs.targets_o),
            "align": squared_distance(outputs.tokens_mku, outputs.prompts_mku),
        }


@dataclass(frozen=True, kw_only=True)
class DrawingObjective:
    """MM-PT and MM-IT of a model that draws: survey eqs. 2, 4 and 5.

    The target text of eq. 2 holds the signals; eqs. 4 and 5 are means over the numbers of each kind
    of media: `to_image.align` and `to_image.denoise`.

    Args:
        spec: the model.
        generation: the weights of eqs. 4 and 5; one of weight 0 is not computed.
    """

    spec: ModelSpec
    generation: Generation

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weight of each loss."""
        parts = {"align": self.generation.align, "denoise": self.generation.denoise}
        return {"text": 1.0} | {
            f"{slot.kind}.{name}": weight
            for slot in self.spec.outputs
            for name, weight in parts.items()
            if weight
        }

    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Return the words, and of each kind the numbers of conditions and of latents."""
        counts = {"text": int(batch.target_mask.sum())}
        for slot in self.spec.outputs:
            media, _ = batch.count(slot.kind)
            counts[f"{slot.kind}.align"] = media * prod(slot.generator.condition_shape)
            counts[f"{slot.kind}.denoise"] = media * prod(slot.generator.latent_shape)
        return {name: counts[name] for name in self.weights}

    def losses(self, outputs: GenerativeLMOutput) -> Mapping[str, Loss]:
        """Return each loss; of media that no rank has, 0 of 0."""
        losses = {"text": text_loss(outputs.logits_ov, outputs.targets_o)}
        nothing = Loss(outputs.logits_ov.new_zeros(()), 0)
        for name in self.weights:
            kind, _, part = name.partition(".")
            drawn = outputs.generation.get(kind)
            if part == "align":
                losses[name] = (
                    squared_distance(drawn.condition_embeds_glw, drawn.target_embeds_glw)
                    if drawn
                    else nothing
                )
            elif part == "denoise":
                losses[name] = (
                    squared_distance(*drawn.noise_prediction)
                    if drawn and drawn.noise_prediction
                    else nothing
                )
        return losses


def _rows(batch: Batch, kind: str) -> int:
    """Return the media of a kind; each row of these stages holds at most one."""
    return len(batch.media[kind].rows_m) if kind in batch.media else 0


def _numbers(spec: ModelSpec, kind: str) -> int:
    """Return how many numbers the backbone's tokens for one medium are."""
    return spec.input_branch(kind).tokens * spec.backbone.width
