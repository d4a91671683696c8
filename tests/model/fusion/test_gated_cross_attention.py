"""Gated cross-attention: initial identity, Flamingo's mask, OpenFlamingo's numbers, generation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.backbones import chatglm, glm, llama, opt, palm, qwen
from model.fusion.conditioning import inject_decoder_kwargs
from model.fusion.gated_cross_attention import (
    NO_MEDIUM,
    GatedBlock,
    add,
    convert_state_dict,
    decoder_kwargs,
)
from model.spec import ChatTemplate, SpecError
from model.spec.backbones import T5, ChatGlm, Glm, Llama, Opt, Palm, Qwen
from model.spec.fusion import GatedCrossAttention

RECORDED = Path(__file__).parents[1] / "recorded"
SIZES = {"width": 64, "mlp_width": 128, "layers": 4, "heads": 4}
COMMON = {"weights": "", "vocabulary": 50, "template": ChatTemplate(), **SIZES}
SPEC = GatedCrossAttention(every_n_layers=2, heads=4, head_width=8, media_width=24)
BACKBONES = {
    "llama": (llama.build, Llama(kv_heads=4, max_positions=64, **COMMON)),
    "opt": (opt.build, Opt(max_positions=64, **COMMON)),
    "qwen": (qwen.build, Qwen(**COMMON)),
    "glm": (glm.build, Glm(**COMMON)),
    "palm": (palm.build, Palm(head_width=16, **COMMON)),
    "chatglm": (chatglm.build, ChatGlm(**COMMON)),
}


def build(name, *, open_gates=False):
    torch.manual_seed(0)
    make_one, spec = BACKBONES[name]
    backbone = make_one(spec, weights="random", dtype=torch.float32).eval()
    add(backbone, SPEC)
    for key, weight in backbone.named_parameters():
        if open_gates and key.endswith("_gate"):
            weight.data.fill_(0.8)
    return backbone


def media(lengths=(3, 5, 4), length=9):
    """Return two media in the first row and one in the second, from these positions on."""
    draw = torch.Generator().manual_seed(1)
    tokens_nkd = torch.randn(3, 6, 24, generator=draw)
    starts = torch.tensor(lengths)
    return decoder_kwargs(tokens_nkd, torch.tensor([0, 0, 1]), starts, (2, length))


def inputs(name, length=9):
    draw = torch.Generator().manual_seed(2)
    given = {
        "inputs_embeds": torch.randn(2, length, 64, generator=draw),
        "attention_mask": torch.ones(2, length, dtype=torch.long),
    }
    if name == "chatglm":
        given["context_mask"] = torch.arange(length)[None].expand(2, -1) < length - 1
    return given


def hidden(backbone, given, extra, **more):
    return backbone.get_decoder()(use_cache=False, **given, **extra, **more).last_hidden_state


def test_a_medium_is_visible_until_the_next_one_starts():
    tokens_nkd = torch.arange(3.0)[:, None, None].expand(3, 1, 1)
    found = decoder_kwargs(tokens_nkd, torch.tensor([1, 0, 1]), torch.tensor([4, 2, 0]), (3, 6))
    index = [[-1, -1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [-1] * 6]
    assert found["media_index"].tolist() == index
    assert found["media"].flatten(1).tolist() == [[1, 0], [2, 0], [0, 0]]


def test_without_media_there_is_one_dummy_that_is_not_visible():
    nothing = torch.zeros(0, dtype=torch.long)
    found = decoder_kwargs(torch.zeros(0, 6, 24), nothing, nothing, (2, 5))
    assert found["media"].shape == (2, 1, 6, 24)
    assert (found["media_index"] == NO_MEDIUM).all()


@pytest.mark.parametrize("name", BACKBONES)
def test_new_layers_are_initially_the_identity(name):
    torch.manual_seed(0)
    make_one, spec = BACKBONES[name]
    plain = make_one(spec, weights="random", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = hidden(plain, inputs(name), {})
        assert hidden(build(name), inputs(name), media()).equal(wanted)


@pytest.mark.parametrize("name", BACKBONES)
def test_greedy_decoding_with_a_cache_equals_full_forward_passes(name):
    backbone, given, extra = build(name, open_gates=True), inputs(name), media()
    with inject_decoder_kwargs(backbone.get_decoder(), extra):
        answer_bt = backbone.generate(
            **given, max_new_tokens=4, do_sample=False, use_cache=True, eos_token_id=None
        )
    assert not backbone.get_decoder()._forward_pre_hooks
    for step in range(4):
        with torch.no_grad():
            last = hidden(backbone, given, extra)[:, -1]
            chosen = backbone.get_output_embeddings()(last).argmax(-1)
            new = backbone.get_input_embeddings()(chosen)[:, None]
        assert answer_bt[:, step].equal(chosen)
        given["inputs_embeds"] = torch.cat([given["inputs_embeds"], new], dim=1)
        given["attention_mask"] = torch.ones(2, 10 + step, dtype=torch.long)
        extra = media(length=10 + step)


def test_beams_attend_to_the_media_of_their_row():
    backbone, given = build("llama", open_gates=True), inputs("llama")
    with inject_decoder_kwargs(backbone.get_decoder(), media()):
        beams = backbone.generate(**given, max_new_tokens=3, num_beams=3, eos_token_id=None)
    alone = decoder_kwargs(torch.randn(0, 6, 24), *(torch.zeros(0, dtype=torch.long),) * 2, (1, 9))
    tokens = media()
    alone["media"], alone["media_index"] = tokens["media"][1:], tokens["media_index"][1:]
    second = {name: value[1:] for name, value in given.items()}
    with inject_decoder_kwargs(backbone.get_decoder(), alone):
        same = backbone.generate(**second, max_new_tokens=3, num_beams=3, eos_token_id=None)
    assert beams[1:].equal(same)


def test_text_attends_to_the_last_medium_before_it_only():
    backbone, given, extra = build("llama", open_gates=True), inputs("llama"), media()
    with torch.no_grad():
        before = hidden(backbone, given, extra)
        other = extra | {"media": extra["media"].clone()}
        other["media"][0, 0] += 1
        changed = (hidden(backbone, given, other) - before).abs().amax(-1) > 1e-6
    # Later text is affected through the text in between, earlier text is not.
    assert changed.tolist() == [[False] * 3 + [True] * 6, [False] * 9]
    block = backbone.model.layers[0].gated
    with torch.no_grad():
        states = torch.randn(2, 9, 64)
        difference = block(states, *other.values()) - block(states, *extra.values())
    assert (difference.abs().amax(-1) > 1e-6).tolist() == [
        [False] * 3 + [True] * 2 + [False] * 4,
        [False] * 9,
    ]


def test_a_dummy_changes_nothing_and_every_new_weight_has_a_gradient():
    backbone, given = build("llama", open_gates=True), inputs("llama")
    nothing = torch.zeros(0, dtype=torch.long)
    extra = decoder_kwargs(torch.zeros(0, 6, 24), nothing, nothing, (2, 9))
    loud = extra | {"media": torch.full_like(extra["media"], 1e4)}
    out = hidden(backbone, given, extra)
    assert out.equal(hidden(backbone, given, loud))
    out.sum().backward()
    weights = {name: w for name, w in backbone.named_parameters() if ".gated." in name}
    assert len(weights) == 2 * 11
    assert all(weight.grad is not None for weight in weights.values())


def test_activation_checkpointing_gives_the_same_gradients():
    found = []
    for recompute in (False, True):
        backbone = build("llama", open_gates=True).train()
        if recompute:
            backbone.activation_checkpointing_enable({"use_reentrant": False})
        extra = media()
        extra["media"].requires_grad_()
        hidden(backbone, inputs("llama"), extra).square().mean().backward()
        grads = {name: w.grad for name, w in backbone.named_parameters() if w.grad is not None}
        found.append(grads | {"media": extra["media"].grad})
    kept, recomputed = found
    assert kept.keys() == recomputed.keys()
    assert all(torch.allclose(recomputed[name], grad, atol=1e-7) for name, grad in kept.items())


def test_a_block_equals_that_of_open_flamingo():
    arrays = load_file(RECORDED / "gated_cross_attention.safetensors")
    spec = GatedCrossAttention(heads=2, head_width=8, media_width=20, activation="gelu")
    block = GatedBlock(spec, 24)
    weights = {k.removeprefix("weights."): v for k, v in arrays.items() if "weights." in k}
    block.load_state_dict(convert_state_dict(weights))
    index_bt = arrays["locations"].long().cumsum(1) - 1
    with torch.no_grad():
        output = block(arrays["hidden"], arrays["media"], index_bt)
        later = block(arrays["hidden"][:, :2], arrays["media"], index_bt[:, -1:].expand(-1, 2))
    torch.testing.assert_close(output, arrays["output"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(later, arrays["output_cached"], atol=1e-6, rtol=1e-5)


def test_squared_relu_is_flamingos_own():
    gated = GatedBlock(replace(SPEC, media_width=None), 64)
    states = torch.randn(1, 2, 64)
    inner = gated.dense.up(gated.dense.norm(states)).relu() ** 2
    torch.testing.assert_close(gated.dense(states), gated.dense.down(inner))


@pytest.mark.parametrize(
    ("every", "layers", "new"), [(1, 24, 24), (4, 40, 10), (7, 80, 12)], ids=["3B", "9B", "80B"]
)
def test_flamingos_have_their_published_number_of_new_layers(every, layers, new):
    with torch.device("meta"):
        spec = replace(BACKBONES["llama"][1], layers=layers)
        backbone = llama.build(spec, weights="random", dtype=torch.float32)
        add(backbone, replace(SPEC, every_n_layers=every))
    gates = [name for name, _ in backbone.named_parameters() if name.endswith("dense_gate")]
    assert len(gates) == new


def test_a_seq2seq_backbone_is_refused():
    spec = T5(**COMMON)
    with pytest.raises(SpecError, match="requires a causal backbone, 't5' is seq2seq"):
        SPEC.check(spec)
    SPEC.check(BACKBONES["opt"][1])
