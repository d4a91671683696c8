"""Image-text retrieval by the contrastive similarity of a Q-Former's pre-training (stage `init`).

BLIP-2 (Li et al. 2023, arXiv:2301.12597, §4.4) ranks by ITC, then re-ranks the best 128 by ITM;
here the ranks are those of ITC alone.

Shapes: i media, t texts, b samples of a batch, q queries, e width of the similarity.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

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
from pipeline.distributed import any_rank, gathered, rank_and_world_size
from pipeline.evaluate.device import inference_device

log = logging.getLogger(__name__)

Key = TypeVar("Key")

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
    config: RunConfig,
    weights: Path,
    shards: ShardSet,
    *,
    batch: int,
    limit: int | None,
    stopped: Callable[[], bool],
) -> dict[str, Recall] | None:
    """Return `retrieval`, the recall of a run of stage `init`; ranks share the samples.

    Args:
        config: of the run.
        weights: of one of its checkpoints.
        shards: captioned media; captions of the same medium are its texts.
        batch: samples per forward pass.
        limit: take only the first samples, at most so many.
        stopped: whether to stop between two batches.

    Returns:
        None where it was stopped.

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
    number = min(len(shards), limit or len(shards))
    model.eval().to(inference_device())
    own = _Embedded()
    rank, world = rank_and_world_size()
    for first in range(0, number, batch)[rank::world]:
        if stopped():
            break
        rows = range(first, min(number, first + batch))
        own.add(model, encoder, tokenizer.pad_token_id, {row: shards[row] for row in rows})
    if any_rank(stopped()):
        return None
    return {"retrieval": _recall(gathered(own), number)}


@dataclass
class _Embedded:
    """What a rank has embedded, each with the row of its first sample.

    Args:
        media: (q, e) by sha256.
        texts: (e,) by the medium's sha256 and the text.
        errors: why a row cannot be used.
    """

    media: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    texts: dict[tuple[str, str], tuple[int, Tensor]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    def add(
        self,
        model: ImageTextModel,
        encoder: SampleEncoder,
        pad_id: int,
        samples: Mapping[int, Sample],
    ) -> None:
        """Embed a batch of samples, by row."""
        examples: dict[int, Example] = {}
        for row, sample in samples.items():
            try:
                examples[row] = encoder.encode(sample)
            except SampleError as error:
                self.errors[row] = str(error)
        if not examples:
            return
        inputs = collate(list(examples.values()), pad_id=pad_id, side="right")
        with torch.no_grad():
            images_bqe, texts_be, _ = model.embed(inputs.to(inference_device()))
        # Copies: a slice would be pickled for other ranks with all of its batch.
        embedded = zip(examples, images_bqe.float().cpu(), texts_be.float().cpu(), strict=True)
        for row, image_qe, text_e in embedded:
            sample = samples[row]
            name = sample.media[0].sha256
            self.media.setdefault(name, (row, image_qe.clone()))
            self.texts.setdefault((name, assistant_text(sample.turns)), (row, text_e.clone()))


def _recall(ranks: Sequence[_Embedded], number: int) -> Recall:
    """Return the recall of what all ranks have embedded of so many samples."""
    errors = dict(sorted(pair for one in ranks for pair in one.errors.items()))
    media = _in_order([one.media for one in ranks])
    texts = _in_order([one.texts for one in ranks])
    if not media:
        raise UserError(f"no sample can be used; first: {next(iter(errors.values()))}")
    if errors:
        first = next(iter(errors.values()))
        log.warning("%d of %d samples skipped; first: %s", len(errors), number, first)
    index = {name: place for place, name in enumerate(media)}
    similarity_it = query_similarity(
        torch.stack(list(media.values())), torch.stack(list(texts.values()))
    )
    own_t = torch.tensor([index[name] for name, _ in texts])
    return replace(recall(similarity_it, own_t), skipped=len(errors))


def _in_order(ranks: Sequence[Mapping[Key, tuple[int, Tensor]]]) -> dict[Key, Tensor]:
    """Return what is embedded in the order of its rows, as one rank alone has it."""
    found: dict[Key, Tensor] = {}
    pairs = (pair for one in ranks for pair in one.items())
    for key, (_, vectors) in sorted(pairs, key=lambda pair: pair[1][0]):
        found.setdefault(key, vectors)
    return found


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
