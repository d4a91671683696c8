"""Let a trained model answer the last question of each sample, greedily and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import PLACEHOLDER_PATTERN, Sample
from model.multimodal_lm import MultimodalLM
from pipeline.data.collate import collate
from pipeline.data.encode import SampleEncoder


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answered question.

    Args:
        id: the sample's.
        kind: the kind of question, as the sample's lineage says, or "".
        question: the last user turn, without placeholders.
        truth: the last assistant turn.
        answer: what the model said.
    """

    id: str
    kind: str
    question: str
    truth: str
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer is the truth, letter by letter but for case and outer blanks."""
        return self.answer.strip().lower() == self.truth.strip().lower()


def without_media(sample: Sample) -> Sample:
    """Return the same questions with nothing to look at."""
    turns = tuple(
        replace(turn, text=PLACEHOLDER_PATTERN.sub("", turn.text).lstrip("\n"))
        for turn in sample.turns
    )
    return replace(sample, turns=turns, media=())


def answers(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: SampleEncoder,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
) -> list[Prediction]:
    """Answer each sample's last question, all together.

    Args:
        model: as the run trained it.
        tokenizer: the backbone's.
        encoder: of the run's prompts.
        samples: each ends with the assistant's true answer, which the model does not see.
        max_new_tokens: longest answer.

    Raises:
        SampleError: a sample that cannot be asked.
    """
    model.eval()
    device = next(model.parameters()).device
    rows = [encoder.question(sample) for sample in samples]
    padded = collate(rows, pad_id=tokenizer.pad_token_id, side="left").to(device)
    with torch.no_grad():
        ids_bt = model.generate(
            padded,
            max_new_tokens=max_new_tokens,
            pad_id=tokenizer.pad_token_id,
            end_id=encoder.end[0] if len(encoder.end) == 1 else tokenizer.eos_token_id,
        )
    # An end of several tokens does not stop the generation; what follows it is cut.
    end = tokenizer.decode(encoder.end) if len(encoder.end) > 1 else None
    texts = tokenizer.batch_decode(ids_bt, skip_special_tokens=True)
    texts = [text.partition(end)[0] if end else text for text in texts]
    return [_prediction(sample, text) for sample, text in zip(samples, texts, strict=True)]


def _prediction(sample: Sample, answer: str) -> Prediction:
    asked = [turn.text for turn in sample.turns if turn.role == "user"]
    return Prediction(
        id=sample.id,
        kind=sample.lineage.get("kind", ""),
        question=PLACEHOLDER_PATTERN.sub("", asked[-1] if asked else "").strip(),
        truth=sample.turns[-1].text,
        answer=answer.strip(),
    )
