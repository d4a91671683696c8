"""Multiple choice by likelihood: the option that the model would most likely write.

An option's likelihood is the mean log-likelihood of its tokens, as a loss is, the end of the answer
included; SEED-Bench's `eval.py` ranks options by their losses in this way.

Shapes: b sequences, t positions, o positions with a target, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import Sample, SampleError, Turn
from model.multimodal_lm import MultimodalLM
from pipeline.data.collate import collate
from pipeline.data.encode import Example, SampleEncoder
from pipeline.evaluate.generate_answers import Prediction, prediction_of


def choose_options(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: SampleEncoder,
    samples: Sequence[Sample],
    options: Mapping[str, Sequence[str]],
) -> list[Prediction]:
    """Choose an option for each sample.

    Args:
        model: as the run trained it.
        tokenizer: the backbone's.
        encoder: of the run's prompts.
        samples: each ends with the true answer of the assistant, which the options replace.
        options: of each sample, by id.

    Returns:
        A prediction for each sample, with the log-likelihoods of its options; the answer is the
        text of the likeliest. One that cannot be a prompt has the reason and no answer.
    """
    return [_choose(model, tokenizer, encoder, sample, options[sample.id]) for sample in samples]


def _choose(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: SampleEncoder,
    sample: Sample,
    options: Sequence[str],
) -> Prediction:
    try:
        examples = [encoder.encode(_answered(sample, option)) for option in options]
    except SampleError as error:
        return prediction_of(sample, error, "")
    scores = option_log_likelihoods(model, tokenizer, examples)
    best = max(range(len(options)), key=scores.__getitem__)
    return replace(
        prediction_of(sample, examples[best], options[best]), option_scores=tuple(scores)
    )


def _answered(sample: Sample, option: str) -> Sample:
    return replace(sample, turns=(*sample.turns[:-1], Turn(role="assistant", text=option)))


def option_log_likelihoods(
    model: MultimodalLM, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> list[float]:
    """Return the mean log-likelihood of each example's targets."""
    model.eval()
    device = next(model.parameters()).device
    batch = collate(examples, pad_id=tokenizer.pad_token_id, side="right").to(device)
    with torch.no_grad():
        logits_ov, targets_o = model.compute_logits(batch, model.media_tokens(batch, ()))
        losses_o = F.cross_entropy(logits_ov.float(), targets_o, reduction="none")
    rows_o = batch.target_mask.nonzero()[:, 0]
    sums_b = losses_o.new_zeros(len(examples)).index_add(0, rows_o, losses_o)
    counts_b = torch.bincount(rows_o, minlength=len(examples)).clamp(min=1)
    return [-value for value in (sums_b / counts_b).tolist()]
