"""Likelihoods of options against the loss of transformers' own model."""

from dataclasses import replace

import pytest
import torch

from etl.digits.records import pair_sample
from etl.storage.schema import Turn
from model.build import build, build_tokenizer
from model.presets import system
from pipeline.data.collate import collate
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.option_likelihoods import option_log_likelihoods


def test_likelihoods_are_the_losses_of_the_backbone() -> None:
    preset = system("digits")
    tokenizer = build_tokenizer(preset.model, weights="pretrained")
    model = build(preset.model, preset.sft, weights="pretrained").eval()
    encoder = SampleEncoder(
        preset.model, tokenizer, prompt="chat", max_tokens=preset.sft.max_tokens
    )
    user = Turn(role="user", text="<image>\nWhich digit?")
    sample = replace(pair_sample(0, 0), turns=(user, Turn(role="assistant", text="3")))
    options = ("3", "seven and five", "no digit")
    examples = [
        encoder.encode(replace(sample, turns=(user, Turn(role="assistant", text=option))))
        for option in options
    ]
    found = option_log_likelihoods(model, tokenizer, examples)
    for example, value in zip(examples, found, strict=True):
        batch = collate([example], pad_id=tokenizer.pad_token_id, side="right")
        with torch.no_grad():
            embeddings_btd, kwargs = model.embed(batch, model.media_tokens(batch))
            loss = model.backbone(
                inputs_embeds=embeddings_btd,
                attention_mask=batch.attention_bt,
                labels=batch.labels_bt,
                **kwargs,
            ).loss
        assert value == pytest.approx(-float(loss), abs=1e-4)
    assert len(set(found)) == 3
