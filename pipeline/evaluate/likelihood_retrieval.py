"""Retrieval by the likelihood of the texts, for models that write text but compare no features.

A text's score for a medium is the mean log-likelihood of its tokens after the medium, the end of
the answer included (VisualGPTScore; Lin et al. 2024, arXiv:2306.01879). That of a common text is
high whatever the medium shows, so the paper divides it by the likelihood of the text alone, to a
power that here is 1; what is divided by is the text's likelihood without the medium. The division
changes the ranks of texts, not those of media.

    OUTPUT/retrieval.jsonl         the most likely text of each medium, and the scores of all texts
    OUTPUT/retrieval_blind.jsonl   each text and its score without the medium

Ranks share the work, and what is scored is saved: a ranking that was stopped or killed resumes, on
any number of ranks (`partial_predictions.py`).

Shapes: i media, t texts, each of a medium, w different texts, p different texts without media.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError
from etl.storage.schema import Sample, SampleError
from model.multimodal_lm import MultimodalLM
from pipeline.data.chat_template import assistant_text
from pipeline.data.encode import SampleEncoder
from pipeline.distributed import any_rank
from pipeline.evaluate.device import FittingBatches
from pipeline.evaluate.generate_answers import Prediction, without_media
from pipeline.evaluate.option_likelihoods import answered, option_log_likelihoods
from pipeline.evaluate.partial_predictions import PartialPredictions
from pipeline.evaluate.retrieval import Recall, recall

log = logging.getLogger(__name__)

_SEEING, _BLIND = "retrieval", "retrieval_blind"
_RANKINGS = {
    "retrieval": "likelihood of the text",
    "retrieval_over_blind": "likelihood of the text, divided by that without the medium",
}


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A sample whose answer is to be ranked.

    Args:
        sample: of the prompt.
        texts: the answers that are scored.
        own: those of them that are right.
    """

    sample: Sample
    texts: Sequence[str]
    own: Sequence[str]


class LikelihoodRetrieval:
    """Ranks texts and media of captioned samples by likelihood.

    Args:
        model: as the run trained it.
        tokenizer: the backbone's.
        encoder: of the run's prompts.
        output: folder of what is scored.
        identity: of the evaluation; what was saved for another one is scored anew.
        batch: texts per forward pass.
        stopped: whether to stop between two media.
    """

    def __init__(
        self,
        model: MultimodalLM,
        tokenizer: PreTrainedTokenizerBase,
        encoder: SampleEncoder,
        *,
        output: Path,
        identity: Mapping[str, Any],
        batch: int,
        stopped: Callable[[], bool],
    ) -> None:
        self._encoder, self._stopped = encoder, stopped
        self._output, self._identity = output, identity
        self._fitting = FittingBatches(batch)
        self._batch = batch
        self._likelihoods = partial(option_log_likelihoods, model, tokenizer)
        self._files: list[PartialPredictions] = []

    def recall(self, samples: Sequence[Sample]) -> dict[str, Recall] | None:
        """Return `retrieval`, by likelihood, and `retrieval_over_blind`, divided by the blind one.

        Args:
            samples: each with media and a caption; captions of the same media are their texts.

        Returns:
            None where it was stopped; what is scored is saved.

        Raises:
            UserError: no sample can be used, or what is scored cannot be written.
        """
        media, texts, errors = self._usable(samples)
        scores = self._scores(media, texts)
        if scores is None:
            return None
        score_it, blind_t = scores
        index = {name: number for number, name in enumerate(media)}
        own_t = torch.tensor([index[name] for name, _ in texts])
        matrices = zip(_RANKINGS.items(), (score_it, score_it - blind_t), strict=True)
        return {
            name: replace(recall(each_it, own_t), by=by, skipped=errors)
            for (name, by), each_it in matrices
        }

    def remove_partial(self) -> None:
        """Remove what is saved for a resumption, once the scores are written; on rank 0."""
        for one in self._files:
            one.remove_partial()

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

    def _scores(
        self, media: Mapping[str, Sample], texts: Mapping[tuple[str, str], Sample]
    ) -> tuple[Tensor, Tensor] | None:
        """Return the score (i, t) of every text after every medium, and (t) of each without.

        Equal texts, and equal prompts without media, are scored once, so that their scores are
        equal to the last bit.

        Returns:
            None where it was stopped.
        """
        own: dict[str, list[str]] = {name: [] for name in media}
        for name, text in texts:
            own[name].append(text)
        words = list(dict.fromkeys(text for _, text in texts))
        seeing = [_Question(sample=media[name], texts=words, own=own[name]) for name in media]
        seeing_iw = self._saved(_SEEING, seeing, together=1)
        if seeing_iw is None:
            return None
        alone = [answered(without_media(sample), text) for (_, text), sample in texts.items()]
        distinct = {sample.turns: sample for sample in alone}
        blind_p = self._saved(_BLIND, list(map(_itself, distinct.values())), together=self._batch)
        if blind_p is None:
            return None
        column = {text: number for number, text in enumerate(words)}
        place = {turns: number for number, turns in enumerate(distinct)}
        blind_t = blind_p[[place[sample.turns] for sample in alone], 0]
        return seeing_iw[:, [column[text] for _, text in texts]], blind_t

    def _saved(self, name: str, questions: Sequence[_Question], *, together: int) -> Tensor | None:
        """Return the scores of the texts of all questions, a row each; a collective.

        Args:
            name: of the file.
            questions: with equally many texts.
            together: how many of them are saved together.

        Returns:
            None where it was stopped.
        """
        path = self._output / f"{name}.jsonl"
        identity = {**self._identity, "file": name}
        saved = PartialPredictions(path, identity, together, len(questions))
        for first in saved.remaining(len(questions)):
            if self._stopped():
                break
            saved.add(first, self._ranked(questions[first : first + together]))
        if any_rank(self._stopped()):
            done = len(saved.predictions)
            log.info("%s: stopped on request after %d of %d; saved", path, done, len(questions))
            return None
        saved.finish()
        self._files.append(saved)
        scores = [one.option_scores for one in saved.predictions]
        return torch.tensor(scores, dtype=torch.float64)

    def _ranked(self, questions: Sequence[_Question]) -> list[Prediction]:
        """Return the most likely text of each question, with the scores of all of its texts."""
        pairs = [(one.sample, text) for one in questions for text in one.texts]
        scores: list[float] = []
        for first in range(0, len(pairs), self._batch):
            part = pairs[first : first + self._batch]
            examples = [self._encoder.encode(answered(*pair)) for pair in part]
            scores += self._fitting.map(self._likelihoods, examples)
        remaining = iter(scores)
        return [_prediction(one, [next(remaining) for _ in one.texts]) for one in questions]


def _itself(sample: Sample) -> _Question:
    """Return a sample whose own answer alone is scored."""
    text = sample.turns[-1].text
    return _Question(sample=sample, texts=[text], own=[text])


def _prediction(question: _Question, scores: Sequence[float]) -> Prediction:
    """Return the most likely text as the answer, and the most likely right one as the truth."""
    likely = [text for _, text in sorted(zip(scores, question.texts, strict=True), reverse=True)]
    return Prediction(
        id=question.sample.id,
        kind="",
        question="",
        truth=next(text for text in likely if text in question.own),
        answer=likely[0],
        option_scores=tuple(scores),
    )
