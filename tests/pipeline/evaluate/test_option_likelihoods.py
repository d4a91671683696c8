"""Likelihoods of options against the loss of transformers' own model."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.digits.records import pair_sample
from etl.storage.schema import Turn
from model.batch import IGNORED
from model.build import build, build_tokenizer
from model.multimodal_lm import MultimodalLM
from model.presets import system
from pipeline.data.collate import collate
from pipeline.data.encode import Example, SampleEncoder
from pipeline.data.generation_targets import earlier_media
from pipeline.evaluate.option_likelihoods import option_log_likelihoods
from tests.worlds import with_outputs

ASKED = Turn(role="user", text="<image>\nWhich digit?")
OPTIONS = ("3", "seven and five", "no digit")


def options_of(encoder: SampleEncoder, before: Sequence[Turn], media: int) -> list[Example]:
    """Return a question with three answers, after other turns."""
    sample = pair_sample(0, 0)
    return [
        encoder.encode(
            replace(
                sample,
                turns=(*before, ASKED, Turn(role="assistant", text=option)),
                media=sample.media * media,
            )
        )
        for option in OPTIONS
    ]


def loss_of(
    model: MultimodalLM,
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    embeddings_btd: Tensor,
) -> float:
    """Return the loss of transformers' own model on the last answer, which ends the sequence."""
    answer = torch.tensor(example.ids)
    answer[: example.context] = IGNORED
    batch = collate([example], pad_id=tokenizer.pad_token_id, side="right")
    found = model.backbone(
        inputs_embeds=embeddings_btd, attention_mask=batch.attention_bt, labels=answer[None]
    )
    return float(found.loss)


@torch.no_grad()
@pytest.mark.parametrize("before", [(), ("Is there a digit?", "There is a digit, I think.")])
def test_likelihoods_are_the_losses_of_the_backbone(before: tuple[str, ...]) -> None:
    """Those of the last answer alone: earlier ones, as of in-context examples, do not count."""
    preset = system("digits")
    tokenizer = build_tokenizer(preset.model, weights="pretrained")
    model = build(preset.model, preset.sft, weights="pretrained").eval()
    encoder = SampleEncoder(
        preset.model, tokenizer, prompt="chat", max_tokens=preset.sft.max_tokens
    )
    roles = ("user", "assistant")
    earlier = [Turn(role=role, text=text) for role, text in zip(roles, before, strict=False)]
    examples = options_of(encoder, earlier, 1)
    found = option_log_likelihoods(model, tokenizer, examples)
    for example, value in zip(examples, found, strict=True):
        batch = collate([example], pad_id=tokenizer.pad_token_id, side="right")
        embeddings_btd, _ = model.embed(batch, model.media_tokens(batch))
        loss = loss_of(model, tokenizer, example, embeddings_btd)
        assert value == pytest.approx(-loss, abs=1e-4)
    assert len(set(found)) == 3


@torch.no_grad()
def test_a_picture_that_was_generated_before_is_read_as_its_signal_tokens() -> None:
    preset = with_outputs(system("digits").tiny())
    tokenizer = build_tokenizer(preset.model, weights="random")
    model = build(preset.model, preset.sft, weights="random", seed=0).eval()
    encoder = SampleEncoder(
        preset.model,
        tokenizer,
        prompt="chat",
        max_tokens=500,
        generation_targets=earlier_media(preset.model.outputs),
    )
    before = (Turn(role="user", text="Draw a 7."), Turn(role="assistant", text="<image>"))
    examples = options_of(encoder, before, 2)
    found = option_log_likelihoods(model, tokenizer, examples)
    [signals_nd] = (each.signal_embeddings() for each in model.output_branches().values())
    for example, value in zip(examples, found, strict=True):
        batch = collate([example], pad_id=tokenizer.pad_token_id, side="right")
        embeddings_btd, _ = model.embed(batch, model.media_tokens(batch))
        signals_t = torch.tensor([kind == "to_image" for kind in example.kinds])
        embeddings_btd[0, signals_t] = signals_nd
        loss = loss_of(model, tokenizer, example, embeddings_btd)
        assert value == pytest.approx(-loss, abs=1e-4)
