"""Multiple choice by likelihood: the option that the model would most likely write.

An option's likelihood is the mean log-likelihood of its tokens, as a loss is, the end of the answer
included; SEED-Bench's `eval.py` ranks options by their losses in this way.

Shapes: b sequences, t positions, o positions with a target, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import Sample, SampleError, Turn
from model.batch import IGNORED
from model.multimodal_lm import MultimodalLM
from pipeline.data.collate import collate
from pipeline.data.encode import Example, SampleEncoder
from pipeline.evaluate.generate_answers import Prediction, prediction_of

Answer = Callable[[Sequence[Sample]], list[Prediction]]


def choose_options(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: SampleEncoder,
    samples: Sequence[Sample],
    *,
    options: Mapping[str, Sequence[str]],
    reply: Callable[[Sequence[float]], str],
) -> list[Prediction | None]:
    """Choose an option for each sample that has some.

    Args:
        model: as the run trained it.
        tokenizer: the backbone's.
        encoder: of the run's prompts.
        samples: each ends with the true answer of the assistant, which the options replace.
        options: of each sample, by id.
        reply: what stands for the options' mean log-likelihoods, such as a letter.

    Returns:
        For each sample with options a prediction with their log-likelihoods, or the reason why it
        cannot be a prompt and no answer.
    """
    return [
        _choose(model, tokenizer, encoder, sample, options[sample.id], reply)
        if options[sample.id]
        else None
        for sample in samples
    ]


def choose_or_generate(
    choose: Callable[[Sequence[Sample]], list[Prediction | None]],
    generate: Answer,
    samples: Sequence[Sample],
) -> list[Prediction]:
    """Choose an option for each sample that has some, and generate the answers to the others."""
    chosen = choose(samples)
    rest = [sample for sample, one in zip(samples, chosen, strict=True) if one is None]
    generated = iter(generate(rest) if rest else [])
    return [next(generated) if one is None else one for one in chosen]


def _choose(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: SampleEncoder,
    sample: Sample,
    options: Sequence[str],
    reply: Callable[[Sequence[float]], str],
) -> Prediction:
    try:
        examples = [encoder.encode(answered(sample, option)) for option in options]
    except SampleError as error:
        return prediction_of(sample, error, "")
    scores = option_log_likelihoods(model, tokenizer, examples)
    return replace(prediction_of(sample, examples[0], reply(scores)), option_scores=tuple(scores))


def answered(sample: Sample, option: str) -> Sample:
    """Return the sample with another last answer."""
    return replace(sample, turns=(*sample.turns[:-1], Turn(role="assistant", text=option)))


def option_log_likelihoods(
    model: MultimodalLM, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> list[float]:
    """Return the mean log-likelihood of each example's last answer, given all before it."""
    model.eval()
    device = next(model.parameters()).device
    last = [
        replace(one, labels=[*[IGNORED] * one.context, *one.labels[one.context :]])
        for one in examples
    ]
    batch = collate(last, pad_id=tokenizer.pad_token_id, side="right").to(device)
    with torch.no_grad():
        logits_ov, targets_o = model.compute_logits(batch, model.media_tokens(batch, ()))
        losses_o = F.cross_entropy(logits_ov.float(), targets_o, reduction="none")
    rows_o = batch.target_mask.nonzero()[:, 0]
    sums_b = losses_o.new_zeros(len(examples)).index_add(0, rows_o, losses_o)
    counts_b = torch.bincount(rows_o, minlength=len(examples)).clamp(min=1)
    return [-value for value in (sums_b / counts_b).tolist()]
