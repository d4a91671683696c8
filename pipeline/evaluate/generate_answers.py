"""Greedy, batched generation of a trained model's answers to the last question of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from etl.storage.schema import PLACEHOLDER_PATTERN, Sample, SampleError
from model.multimodal_lm import MultimodalLM
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
        answer: the model's.
        skip_reason: why the question could not be asked; empty if it was.
    """

    id: str
    kind: str
    question: str
    truth: str
    answer: str
    skip_reason: str = ""

    @property
    def correct(self) -> bool:
        """Whether the answer equals the truth, except for case and surrounding whitespace."""
        return self.answer.strip().lower() == self.truth.strip().lower()


def without_media(sample: Sample) -> Sample:
    """Return the sample's text alone, for the blind baseline."""
    turns = tuple(
        replace(turn, text=PLACEHOLDER_PATTERN.sub("", turn.text).lstrip("\n"))
        for turn in sample.turns
    )
    return replace(sample, turns=turns, media=())


def generate_answers(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: SampleEncoder,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
    streamer: BaseStreamer | None = None,
) -> list[Prediction]:
    """Answer the last question of each sample, in one batch.

    Args:
        model: as the run trained it.
        tokenizer: the backbone's.
        encoder: of the run's prompts.
        samples: each ends with the true answer of the assistant, which the model does not see.
        max_new_tokens: longest answer.
        streamer: gets the tokens of a single sample's answer as they are generated.

    Returns:
        A prediction for each sample; one that cannot be a prompt has the reason and no answer.
    """
    prompts, skip_reasons = _encode_prompts(encoder, samples)
    answers = iter(
        _answers(
            model,
            tokenizer,
            encoder,
            prompts,
            max_new_tokens=max_new_tokens,
            streamer=streamer,
        )
    )
    return [
        _prediction(sample, "" if reason else next(answers), reason)
        for sample, reason in zip(samples, skip_reasons, strict=True)
    ]


def _encode_prompts(
    encoder: SampleEncoder, samples: Sequence[Sample]
) -> tuple[list[Example], list[str]]:
    """Return the prompts, and for each sample why it has none, or an empty text."""
    prompts: list[Example] = []
    reasons: list[str] = []
    for sample in samples:
        try:
            prompts.append(encoder.encode_prompt(sample))
            reasons.append("")
        except SampleError as error:
            reasons.append(str(error))
    return prompts, reasons


def _answers(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: SampleEncoder,
    prompts: Sequence[Example],
    *,
    max_new_tokens: int,
    streamer: BaseStreamer | None,
) -> list[str]:
    """Return the model's answers to prompts, in one batch."""
    if not prompts:
        return []
    model.eval()
    device = next(model.parameters()).device
    batch = collate(prompts, pad_id=tokenizer.pad_token_id, side="left").to(device)
    end_ids = encoder.end_ids
    with torch.no_grad():
        ids_bt = model.generate(
            batch,
            max_new_tokens=max_new_tokens,
            pad_id=tokenizer.pad_token_id,
            end_id=end_ids[0] if len(end_ids) == 1 else tokenizer.eos_token_id,
            streamer=streamer,
        )
    # An end of several tokens does not stop the generation: the text after it is cut off.
    end = tokenizer.decode(end_ids) if len(end_ids) > 1 else None
    texts = tokenizer.batch_decode(ids_bt, skip_special_tokens=True)
    return [text.partition(end)[0] if end else text for text in texts]


def _prediction(sample: Sample, answer: str, skip_reason: str) -> Prediction:
    questions = [turn.text for turn in sample.turns if turn.role == "user"]
    return Prediction(
        id=sample.id,
        kind=sample.lineage.get("kind", ""),
        question=PLACEHOLDER_PATTERN.sub("", questions[-1] if questions else "").strip(),
        truth=sample.turns[-1].text if sample.turns else "",
        answer=answer.strip(),
        skip_reason=skip_reason,
    )
