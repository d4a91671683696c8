"""Retrieval by the likelihood of the texts, for models that write text but compare no features.

A text's score for a medium is the mean log-likelihood of its tokens after the medium, the end of
the answer included (VisualGPTScore; Lin et al. 2024, arXiv:2306.01879). That of a common text is
high whatever the medium shows, so the paper divides it by the likelihood of the text alone, to a
power that here is 1; what is divided by is the text's likelihood without the medium. The division
changes the ranks of texts, not those of media.

Shapes: i media, t texts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError
from etl.storage.schema import Sample, SampleError
from model.multimodal_lm import MultimodalLM
from pipeline.data.chat_template import assistant_text
from pipeline.data.encode import SampleEncoder
from pipeline.distributed import any_rank, rank_and_world_size
from pipeline.evaluate.device import FittingBatches
from pipeline.evaluate.generate_answers import without_media
from pipeline.evaluate.option_likelihoods import answered, option_log_likelihoods
from pipeline.evaluate.retrieval import Recall, recall

log = logging.getLogger(__name__)

_RANKINGS = {
    "retrieval": "likelihood of the text",
    "retrieval_over_blind": "likelihood of the text, divided by that without the medium",
}


class LikelihoodRetrieval:
    """Ranks texts and media of captioned samples by likelihood.

    Args:
        model: as the run trained it.
        tokenizer: the backbone's.
        encoder: of the run's prompts.
        batch: texts per forward pass.
        stopped: whether to stop between two media.
    """

    def __init__(
        self,
        model: MultimodalLM,
        tokenizer: PreTrainedTokenizerBase,
        encoder: SampleEncoder,
        *,
        batch: int,
        stopped: Callable[[], bool],
    ) -> None:
        self._encoder, self._stopped = encoder, stopped
        self._fitting = FittingBatches(batch)
        self._batch = batch
        self._likelihoods = partial(option_log_likelihoods, model, tokenizer)

    def recall(self, samples: Sequence[Sample]) -> dict[str, Recall] | None:
        """Return `retrieval`, by likelihood, and `retrieval_over_blind`, divided by the blind one.

        Args:
            samples: each with media and a caption; captions of the same media are their texts.

        Returns:
            None where it was stopped.

        Raises:
            UserError: no sample can be used.
        """
        media, texts, errors = self._usable(samples)
        index = {name: number for number, name in enumerate(media)}
        own_t = torch.tensor([index[name] for name, _ in texts])
        words = [text for _, text in texts]
        score_it = self._matrix(list(media.values()), words)
        blind_t = self._blind(texts)
        if any_rank(self._stopped()):
            return None
        matrices = zip(_RANKINGS.items(), (score_it, score_it - blind_t), strict=True)
        return {
            name: replace(recall(each_it, own_t), by=by, skipped=errors)
            for (name, by), each_it in matrices
        }

    def _usable(
        self, samples: Sequence[Sample]
    ) -> tuple[dict[str, Sample], dict[tuple[str, str], Sample], int]:
        """Return the samples by media and by media and text, and how many cannot be used."""
        media: dict[str, Sample] = {}
        texts: dict[tuple[str, str], Sample] = {}
        errors: list[str] = []
        for sample in samples:
            try:
                if not sample.media:
                    raise SampleError(f"sample {sample.id}: has no medium")
                self._encoder.encode(sample)
            except SampleError as error:
                errors.append(str(error))
                continue
            name = " ".join(medium.sha256 for medium in sample.media)
            media.setdefault(name, sample)
            texts.setdefault((name, assistant_text(sample.turns[-1:])), sample)
        if not media:
            raise UserError(f"no sample can be used; first: {errors[0]}")
        if errors:
            log.warning("%d of %d samples skipped; first: %s", len(errors), len(samples), errors[0])
        return media, texts, len(errors)

    def _matrix(self, media: Sequence[Sample], texts: Sequence[str]) -> Tensor:
        """Return the likelihood of every text after every medium; ranks share the media."""
        score_it = torch.zeros(len(media), len(texts), dtype=torch.float64)
        rank, world = rank_and_world_size()
        for row in range(rank, len(media), world):
            if self._stopped():
                break
            pairs = [(media[row], text) for text in texts]
            score_it[row] = torch.tensor(self._scores(pairs), dtype=torch.float64)
        if world > 1:
            dist.all_reduce(score_it)
        return score_it

    def _blind(self, texts: dict[tuple[str, str], Sample]) -> Tensor:
        """Return the likelihood of every text without its medium."""
        pairs = [(without_media(sample), text) for (_, text), sample in texts.items()]
        return torch.tensor(self._scores(pairs), dtype=torch.float64)

    def _scores(self, pairs: Sequence[tuple[Sample, str]]) -> list[float]:
        found: list[float] = []
        for first in range(0, len(pairs), self._batch):
            examples = [
                self._encoder.encode(answered(*pair)) for pair in pairs[first : first + self._batch]
            ]
            found += self._fitting.map(self._likelihoods, examples)
        return found
