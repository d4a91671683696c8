"""Image-text retrieval by the contrastive similarity of a Q-Former's pre-training (stage `init`).

BLIP-2 (Li et al. 2023, arXiv:2301.12597, §4.4) ranks by ITC, then re-ranks the best 128 by ITM;
here the ranks are those of ITC alone.

Shapes: i media, t texts, b samples of a batch, q queries, e width of the similarity.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import Tensor

from etl.cli import UserError
from etl.storage.schema import Sample, SampleError
from etl.storage.shards import ShardSet
from model.build import build_tokenizer
from model.pretraining.build import build_init, sentence_reader
from model.pretraining.contrastive import query_similarity
from model.pretraining.image_text import ImageTextModel
from model.spec.system import InitStage
from model.weights import load_trained
from pipeline.checkpoint.files import OBJECTIVE_WEIGHTS
from pipeline.config.run_config import RunConfig
from pipeline.data.chat_template import assistant_text
from pipeline.data.collate import collate
from pipeline.data.encode import Example, SampleEncoder
from pipeline.evaluate.device import inference_device

log = logging.getLogger(__name__)

RANKS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Recall in both directions, by rank.

    Args:
        media, texts: their numbers.
        text_of_medium: fraction of media one of whose texts is among the K most similar ones.
        medium_of_text: fraction of texts whose medium is among the K most similar ones.
        skipped: samples that could not be used.
        by: what ranks them.
    """

    media: int
    texts: int
    text_of_medium: dict[int, float]
    medium_of_text: dict[int, float]
    skipped: int = 0
    by: str = "contrastive similarity"


def recall(similarity_it: Tensor, medium_of_text_t: Tensor) -> Recall:
    """Return recall at 1, 5 and 10, as in the protocol of COCO and Flickr30K retrieval.

    Of equal similarities the wrong ones come first, so that a model that cannot tell gains nothing.

    Args:
        similarity_it: of every medium and every text.
        medium_of_text_t: the index of each text's medium.
    """
    media, texts = similarity_it.shape
    own_it = medium_of_text_t == torch.arange(media)[:, None]
    best_own_i = similarity_it.masked_fill(~own_it, -torch.inf).amax(1)
    own_t = similarity_it[medium_of_text_t, torch.arange(texts)]
    before_i = ((similarity_it >= best_own_i[:, None]) & ~own_it).sum(1)
    before_t = ((similarity_it >= own_t) & ~own_it).sum(0)
    return Recall(
        media=media,
        texts=texts,
        text_of_medium={k: (before_i < k).float().mean().item() for k in RANKS},
        medium_of_text={k: (before_t < k).float().mean().item() for k in RANKS},
    )


def evaluate_retrieval(
    config: RunConfig, weights: Path, data: Sequence[Path], *, batch: int, limit: int | None
) -> tuple[dict[str, Any], RenderableType]:
    """Return the content of scores.json of a run of stage `init`, and a table of it.

    Args:
        config: of the run.
        weights: of one of its checkpoints.
        data: folders of captioned media; captions of the same medium are its texts.
        batch: samples per forward pass.
        limit: take only the first samples, at most so many.

    Raises:
        UserError: the stage has no contrastive similarity, or no sample can be used.
    """
    settings = config.settings
    assert isinstance(settings, InitStage)
    model = build_init(config.system.model, settings, weights=config.weights, seed=config.seed)
    if not isinstance(model, ImageTextModel):
        raise UserError(
            f"{config.output}: pre-trains on sentences alone; want a run of a Q-Former's pairs, or "
            "of pt, sft or rlhf"
        )
    load_trained(model, weights)
    load_trained(model, weights.with_name(OBJECTIVE_WEIGHTS))
    tokenizer = build_tokenizer(config.system.model, weights=config.weights)
    encoder = SampleEncoder(
        config.system.model,
        tokenizer,
        prompt=settings.prompt,
        max_tokens=settings.max_tokens,
        sentences=sentence_reader(config.system.model, settings, weights=config.weights),
    )
    shards = ShardSet(data)
    number = min(len(shards), limit or len(shards))
    samples = [shards[row] for row in range(number)]
    found = _recall(
        model.eval().to(inference_device()), encoder, tokenizer.pad_token_id, samples, batch
    )
    return retrieval_scores({"retrieval": found})


def _recall(
    model: ImageTextModel, encoder: SampleEncoder, pad_id: int, samples: Sequence[Sample], size: int
) -> Recall:
    media: dict[str, Tensor] = {}
    texts: dict[tuple[str, str], Tensor] = {}
    errors: list[str] = []
    for first in range(0, len(samples), size):
        pairs: list[tuple[Sample, Example]] = []
        for sample in samples[first : first + size]:
            try:
                pairs.append((sample, encoder.encode(sample)))
            except SampleError as error:
                errors.append(str(error))
        if not pairs:
            continue
        inputs = collate([example for _, example in pairs], pad_id=pad_id, side="right")
        with torch.no_grad():
            images_bqe, texts_be, _ = model.embed(inputs.to(inference_device()))
        embedded = zip(pairs, images_bqe.float().cpu(), texts_be.float().cpu(), strict=True)
        for (sample, _), image_qe, text_e in embedded:
            name = sample.media[0].sha256
            media.setdefault(name, image_qe)
            texts.setdefault((name, assistant_text(sample.turns)), text_e)
    if not media:
        raise UserError(f"no sample can be used; first: {errors[0]}")
    if errors:
        log.warning("%d of %d samples skipped; first: %s", len(errors), len(samples), errors[0])
    index = {name: number for number, name in enumerate(media)}
    similarity_it = query_similarity(
        torch.stack(list(media.values())), torch.stack(list(texts.values()))
    )
    own_t = torch.tensor([index[name] for name, _ in texts])
    scores = recall(similarity_it, own_t)
    return Recall(**{**vars(scores), "skipped": len(errors)})


def retrieval_scores(found: Mapping[str, Recall]) -> tuple[dict[str, Any], RenderableType]:
    """Return the content of scores.json, and a table for each ranking, by its key there."""
    tables = [_table(one) for one in found.values()]
    return {name: asdict(one) for name, one in found.items()}, Group(*tables)


def _table(scores: Recall) -> Table:
    title = f"by {scores.by}"
    table = Table("retrieval", "of", *(f"R@{k}" for k in RANKS), title=title)
    for name, of, values in (
        ("text of a medium", scores.media, scores.text_of_medium),
        ("medium of a text", scores.texts, scores.medium_of_text),
    ):
        table.add_row(name, str(of), *(f"{values[k]:.3f}" for k in RANKS))
    return table
