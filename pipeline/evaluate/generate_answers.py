"""Batched generation of a trained model's answers to the last question of each sample."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from etl.storage.schema import (
    PLACEHOLDER_PATTERN,
    Medium,
    Sample,
    SampleError,
    Turn,
    words_of,
)
from model.multimodal_lm import MultimodalLM
from model.sampling import GREEDY, Sampling, TokenChoice, cut_at, seed_of
from pipeline.data.collate import collate
from pipeline.data.encode import Example, SampleEncoder


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """An answered question.

    Args:
        id: the sample's.
        kind: the kind of question, from the sample's lineage, or "".
        question: the last user turn, without placeholders.
        truth: the last assistant turn.
        answer: the model's; of several the first, by which it is scored.
        skip_reason: why the question could not be asked; empty if it was.
        cut: which of its media the model takes in part only, and how much.
        option_scores: mean log-likelihoods of the options, where one of them was chosen.
        others: further answers to the same question, if several were asked for.
    """

    id: str
    kind: str
    question: str
    truth: str
    answer: str
    skip_reason: str = ""
    cut: str = ""
    option_scores: tuple[float, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether the answer equals the truth, except for case and surrounding whitespace."""
        return self.answer.strip().lower() == self.truth.strip().lower()


def without_media(sample: Sample, *, keep: str = "") -> Sample:
    """Return the sample's text alone, for the blind baseline.

    Args:
        sample: of any kind.
        keep: the role whose media stay: the assistant's, where they are generated, not seen.
    """
    turns: list[Turn] = []
    kept: list[Medium] = []
    media = iter(sample.media)
    for turn in sample.turns:
        own = list(itertools.islice(media, len(PLACEHOLDER_PATTERN.findall(turn.text))))
        if turn.role == keep:
            turns.append(turn)
            kept += own
        else:
            text = PLACEHOLDER_PATTERN.sub("", turn.text).lstrip("\n")
            turns.append(replace(turn, text=text))
    return replace(sample, turns=tuple(turns), media=tuple(kept))


class StopText(StoppingCriteria):
    """Stops answers that end with one of some texts, of several tokens, such as `###`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *texts: str) -> None:
        self._tokenizer, self._texts = tokenizer, texts
        # A text may begin within a token, and a character may be several of them.
        self._last = 4 * max(len(text.encode()) for text in texts) + 1

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Return for each row (b,) of generated ids whether it is complete."""
        texts = self._tokenizer.batch_decode(input_ids[:, -self._last :])
        found = [any(stop in text for stop in self._texts) for text in texts]
        return torch.tensor(found, device=input_ids.device)


def stop_texts(encoder: SampleEncoder, sampling: Sampling) -> tuple[str, ...]:
    """Return all texts that end an answer: the chat template's, if it has one, and those asked."""
    return (*([encoder.stop_text] if encoder.stop_text else []), *sampling.stop)


def generate_answers(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: SampleEncoder,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    streamer: BaseStreamer | None = None,
) -> list[Prediction]:
    """Answer the last question of each sample, in one batch.

    Args:
        model: as the run trained it.
        tokenizer: the backbone's.
        encoder: of the run's prompts.
        samples: each ends with the true answer of the assistant, which the model does not see.
        max_new_tokens: longest answer.
        sampling: how tokens are chosen, and how many answers there are to each question; an answer
            depends on its seed, its sample and its number alone, not on the batch.
        streamer: gets the tokens of a single sample's answer as they are generated.

    Returns:
        A prediction for each sample; one that cannot be a prompt has the reason and no answer.
    """
    encoded = [_encode_prompt(encoder, sample, max_new_tokens) for sample in samples]
    asked = [
        (sample.id, one)
        for sample, one in zip(samples, encoded, strict=True)
        if isinstance(one, Example)
    ]
    answers = iter(
        _answers(
            model,
            tokenizer,
            encoder,
            [one for _, one in asked for _ in range(sampling.n)],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seeds=[
                seed_of(sampling.seed, name, f"text {number}" if number else "text")
                for name, _ in asked
                for number in range(sampling.n)
            ],
            streamer=streamer,
        )
    )
    return [
        prediction_of(
            sample,
            one,
            *([next(answers) for _ in range(sampling.n)] if isinstance(one, Example) else [""]),
        )
        for sample, one in zip(samples, encoded, strict=True)
    ]


def _encode_prompt(
    encoder: SampleEncoder, sample: Sample, max_new_tokens: int
) -> Example | SampleError:
    """Return a sample's prompt, or why it has none."""
    try:
        return encoder.encode_prompt(sample, max_new_tokens=max_new_tokens)
    except SampleError as error:
        return error


def _answers(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: SampleEncoder,
    prompts: Sequence[Example],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    streamer: BaseStreamer | None,
) -> list[str]:
    """Return the model's answers to prompts, in one batch."""
    if not prompts:
        return []
    model.eval()
    device = next(model.parameters()).device
    batch = collate(prompts, pad_id=tokenizer.pad_token_id, side="left").to(device)
    ends = stop_texts(encoder, sampling)
    with torch.no_grad():
        ids_bt = model.generate(
            batch,
            max_new_tokens=max_new_tokens,
            pad_id=tokenizer.pad_token_id,
            end_ids=encoder.stop_ids,
            streamer=streamer,
            stop=[StopText(tokenizer, *ends)] if ends else [],
            choose=None if sampling.is_greedy else TokenChoice(sampling, seeds),
        )
    texts = tokenizer.batch_decode(ids_bt, skip_special_tokens=True)
    return [cut_at(text, ends) for text in texts]


def prediction_of(
    sample: Sample, prompt: Example | SampleError, answer: str, *others: str
) -> Prediction:
    """Return the answers to a sample's question, or why it could not be asked."""
    questions = [turn.text for turn in sample.turns if turn.role == "user"]
    return Prediction(
        id=sample.id,
        kind=sample.lineage.get("kind", ""),
        question=words_of(questions[-1] if questions else "").strip(),
        truth=words_of(sample.turns[-1].text) if sample.turns else "",
        answer=answer.strip(),
        others=tuple(other.strip() for other in others),
        skip_reason=str(prompt) if isinstance(prompt, SampleError) else "",
        cut=prompt.cut if isinstance(prompt, Example) else "",
    )
