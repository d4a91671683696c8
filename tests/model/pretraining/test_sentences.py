"""Training of a P-Former: BLIText's losses and gradients; prompts at a medium's positions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

from model.batch import IGNORED, Batch, Media
from model.input_projectors import pformer
from model.presets import system
from model.pretraining.sentences import SentenceModel
from model.spec.init import SentenceInit
from model.spec.pformer import PFormer
from model.text import TextIds
from pipeline.train.objectives import SentenceObjective

RECORDED = Path(__file__).parents[1] / "recorded" / "pformer.safetensors"
FORMER = replace(PFormer(dropout=0.0).tiny(), vocabulary=48, max_positions=64, max_text=8)
SPEC = SentenceInit(pformer=FORMER, bert="", width=16, masked=0.0)
MASK = 3


def small_model():
    config = OPTConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=64,
        word_embed_proj_dim=24,
        dropout=0.0,
        attention_dropout=0.0,
    )
    torch.manual_seed(0)
    backbone = OPTForCausalLM(config)
    former = pformer.build(FORMER, prompts=8, width_out=24)
    return SentenceModel(SPEC, system("digits").model, backbone, former, MASK)


def behind_prompts(text, words, words_mask, *, rows):
    """Return sentences in both vocabularies, after the prompts; rows beyond `rows` are dummies."""
    number, length = words.shape
    places = torch.zeros(number, 8 + length, dtype=torch.bool)
    places[:rows, :8] = True
    ids = torch.cat([torch.zeros(number, 8, dtype=torch.long), words], 1)
    seen = torch.cat([torch.ones(number, 8, dtype=torch.long), words_mask], 1)
    labels = ids.masked_fill((seen == 0) | places, IGNORED)
    labels[rows:] = IGNORED
    rows_m = torch.arange(rows)
    unread = Media(
        input_values=torch.zeros(rows, 0),
        media_mask_bt=places,
        rows_m=rows_m,
        starts_m=torch.zeros_like(rows_m),
    )
    return Batch(
        ids_bt=ids,
        attention_bt=seen,
        labels_bt=labels,
        context_bt=places,
        media={"image": unread} if rows else {},
        sentences=text,
    )


def objective():
    return SentenceObjective(spec=system("digits").model, stage=SPEC)


def means(outputs):
    losses = objective().losses(outputs)
    return {name: total / max(1, count) for name, (total, count, _) in losses.items()}


def test_losses_and_gradients_equal_those_of_blitext():
    recorded = load_file(RECORDED)
    state = {n.removeprefix("weights."): t for n, t in recorded.items() if "weights." in n}
    model = small_model()
    model.reference.load_state_dict(pformer.convert_state_dict(state))
    frozen = {
        name.removeprefix("opt_model."): tensor
        for name, tensor in state.items()
        if name.startswith("opt_model.")
    }
    found = model.backbone.load_state_dict(frozen, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["lm_head.weight"], [])
    model.backbone.requires_grad_(False)
    heads = model.heads.sentences.linear
    heads.load_state_dict({kind: state[f"Pformer.text_proj.{kind}"] for kind in ("weight", "bias")})
    text = TextIds(ids_bl=recorded["ids"], mask_bl=recorded["mask"])
    torch.testing.assert_close(model.reference(text), recorded["prompts"], atol=1e-6, rtol=1e-5)
    batch = behind_prompts(text, recorded["words"], recorded["words_mask"], rows=4)
    losses = means(model(batch))
    for name, loss in losses.items():
        torch.testing.assert_close(loss, recorded[name], atol=1e-6, rtol=1e-5)
    sum(losses.values()).backward()
    own = {
        "temp": model.heads.temperature.value,
        "text_proj.weight": heads.weight,
        "opt_proj.weight": model.reference.head.weight,
        "embeddings.word_embeddings.weight": model.reference.bert.embeddings.word_embeddings.weight,
    }
    for name, weight in own.items():
        expected = recorded[f"gradient.Pformer.{name}"].reshape(weight.shape)
        torch.testing.assert_close(weight.grad, expected, atol=1e-5, rtol=1e-4)


def some_sentences(rows, *, dummy=0):
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(6, 48, (5, 8), generator=draw)[: rows + dummy]
    words = torch.randint(4, 40, (5, 6), generator=draw)[: rows + dummy]
    text = TextIds(ids_bl=ids, mask_bl=torch.ones_like(ids))
    return behind_prompts(text, words, torch.ones_like(words), rows=rows)


def test_dummy_rows_change_no_loss():
    model = small_model()
    alone, filled = means(model(some_sentences(2))), means(model(some_sentences(2, dummy=1)))
    assert alone.keys() == filled.keys()
    for name, loss in alone.items():
        torch.testing.assert_close(filled[name], loss)


def test_a_batch_of_dummy_rows_has_no_losses_but_gradients():
    losses = objective().losses(small_model()(some_sentences(0, dummy=2)))
    assert all(total.item() == 0 and count == 0 for total, count, _ in losses.values())
    sum(total for total, *_ in losses.values()).backward()


def test_cls_and_padding_are_never_masked():
    model = small_model()
    model.objective = replace(SPEC, masked=1.0)
    ids = torch.tensor([[1, 7, 8, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    masked = model._masked(TextIds(ids_bl=ids, mask_bl=mask))
    assert masked.ids_bl.tolist() == [[1, MASK, MASK, MASK, 0]]


def test_each_prompt_is_quantised_to_the_nearest_word():
    model = small_model()
    words = model.backbone.get_input_embeddings().weight.detach()
    near = words[[5, 9]] + 1e-3
    assert torch.equal(model.heads.codebook(near), words[[5, 9]])


def test_counts_before_the_forward_pass_equal_those_of_the_losses():
    batch = some_sentences(3, dummy=1)
    losses = objective().losses(small_model()(batch))
    counts = objective().counts(batch)
    assert counts["contrast"] == losses["contrast"][1] == 3
    assert counts["text"] == losses["text"][1] == 18


def test_the_size_is_that_of_bert_and_the_layers_after_it():
    with torch.device("meta"):
        module = pformer.build(PFormer(), prompts=32, width_out=2560)
    bert = sum(weight.numel() for weight in module.bert.parameters())
    rest = sum(weight.numel() for weight in module.parameters()) - bert
    assert bert == pytest.approx(109e6, rel=0.005)
    assert rest == (768 + 1) * (32 * 768 + 768 + 2560)
