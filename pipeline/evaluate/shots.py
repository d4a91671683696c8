"""In-context examples: solved samples of other shards before each question (few-shot evaluation).

Chosen at random for each question, as in Flamingo's and VILA's few-shot evaluations, or by the
similarity of their media in the run's own frozen encoder, the most similar last: retrieval-based
in-context example selection (RICES; Yang et al. 2022, and Alayrac et al. 2022, *Flamingo*, app.
A.2), there with CLIP.

Shapes: s samples of the pool, m media, f segments, n tokens, d width.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from etl.cli import UserError
from etl.storage.schema import Sample, SampleError
from etl.storage.shards import ShardSet
from model.multimodal_lm import MultimodalLM
from pipeline.data.encode import SampleEncoder

log = logging.getLogger(__name__)

ShotsBy = Literal["seed", "similarity"]


class Shots:
    """Puts solved samples of a pool before each question; a function of a sample.

    Which ones depends on the pool, the seed and the sample alone, never on batches or ranks.

    Args:
        pool: the samples to choose from; each ends with its answer.
        number: of examples before a question.
        seed: of the choice.
        similar: finds the most similar samples; None to choose at random.

    Raises:
        UserError: the pool has too few samples.
    """

    def __init__(
        self, pool: ShardSet, number: int, *, seed: int, similar: SimilarMedia | None = None
    ) -> None:
        if len(pool) <= number:
            raise UserError(f"--shots-data: {len(pool)} samples, want more than --shots {number}")
        self._pool, self._number, self._seed, self._similar = pool, number, seed, similar
        self.identity = pool.fingerprint

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with its examples as the turns before its own."""
        chosen = self._chosen(sample)
        examples = [one for one in chosen if one.id != sample.id][-self._number :]
        return replace(
            sample,
            turns=(*(turn for one in examples for turn in one.turns), *sample.turns),
            media=(*(medium for one in examples for medium in one.media), *sample.media),
        )

    def _chosen(self, sample: Sample) -> list[Sample]:
        """Return one more sample than needed: the question itself may be among them."""
        rows = self._similar.rows(sample, self._number + 1) if self._similar else None
        if rows is None:
            digest = hashlib.sha256(f"{self._seed} {sample.id}".encode()).digest()
            generator = np.random.default_rng(list(digest))
            rows = generator.choice(len(self._pool), self._number + 1, replace=False).tolist()
        return [self._pool[row] for row in rows]


class SimilarMedia:
    """Finds the samples of a pool whose first medium has the most similar features.

    The features of a medium are the mean of its encoder's tokens; similarity is their cosine.

    Args:
        pool: the samples.
        model: whose frozen encoders compute the features.
        encoder: of the samples.
    """

    def __init__(self, pool: ShardSet, model: MultimodalLM, encoder: SampleEncoder) -> None:
        self._model, self._encoder = model, encoder
        log.info("--shots-by similarity: features of %d samples", len(pool))
        found: dict[str, dict[int, Tensor]] = {}
        for row in range(len(pool)):
            kind, vector_d = self._features(pool[row])
            found.setdefault(kind, {})[row] = vector_d
        self._by_kind = {
            kind: (torch.tensor(list(own)), torch.stack(list(own.values())))
            for kind, own in found.items()
        }

    def rows(self, sample: Sample, number: int) -> list[int] | None:
        """Return the rows of the most similar samples, the most similar last.

        None for a sample without a medium of a kind that enough of the pool have.
        """
        kind, vector_d = self._features(sample)
        rows_s, vectors_sd = self._by_kind.get(kind, (torch.empty(0), torch.empty(0)))
        if not kind or len(rows_s) < number:
            return None
        # A stable order: equal media come in the order of the pool.
        order_s = torch.sort(vectors_sd @ vector_d, descending=True, stable=True).indices
        best: list[int] = rows_s[order_s[:number]].tolist()
        return best[::-1]

    def _features(self, sample: Sample) -> tuple[str, Tensor]:
        """Return kind and normalised features (d,) of a sample's first medium; "" for none."""
        try:
            media = self._encoder.encode_prompt(sample).media
        except SampleError:  # of a question it is reported where it is asked
            media = ()
        if not media or media[0].input_values is None:
            return "", torch.empty(0)
        device = next(self._model.parameters()).device
        with torch.no_grad():
            features_mfnd = self._model.encode(
                media[0].kind, media[0].input_values[None].to(device)
            )
        mean_d = features_mfnd.float().mean((0, 1, 2)).cpu()
        return media[0].kind, mean_d / mean_d.norm()
