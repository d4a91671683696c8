"""PEFT modules in a backbone: initial effect, trainable parameters, generation."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from model.backbones import chatglm, glm, llama, opt, palm, qwen, t5
from model.fusion import gated_cross_attention, visual_expert
from model.fusion.conditioning import inject_decoder_kwargs
from model.peft import adapter, prefix, qlora
from model.peft.lora import add_lora
from model.spec import ChatTemplate, SpecError
from model.spec.backbones import T5, ChatGlm, Glm, Llama, Opt, Palm, Qwen
from model.spec.fusion import GatedCrossAttention, VisualExpert
from model.spec.peft import (
    CHATGLM_LINEAR,
    GLM_LINEAR,
    LLAMA_LINEAR,
    OPT_LINEAR,
    T5_LINEAR,
    Adapter,
    Lora,
    Prefix,
    QLora,
)

SIZES = {"width": 64, "mlp_width": 128, "layers": 2, "heads": 4, "vocabulary": 50}
COMMON = {"weights": "", "template": ChatTemplate(), **SIZES}
BACKBONES = {
    "llama": (llama.build, Llama(kv_heads=2, max_positions=64, **COMMON), LLAMA_LINEAR),
    "opt": (opt.build, Opt(max_positions=64, **COMMON), OPT_LINEAR),
    "qwen": (qwen.build, Qwen(**COMMON), LLAMA_LINEAR),
    "glm": (glm.build, Glm(**COMMON), GLM_LINEAR),
    "palm": (palm.build, Palm(head_width=8, **COMMON), LLAMA_LINEAR),
    "chatglm": (chatglm.build, ChatGlm(**COMMON), CHATGLM_LINEAR),
    "t5": (t5.build, T5(**COMMON), T5_LINEAR),
}
CAUSAL = [name for name in BACKBONES if name != "t5"]
LAST = {
    "opt": ("out_proj", "fc2"),
    "t5": ("o", "wo"),
    "chatglm": ("attention.dense", "dense_4h_to_h"),
}


def build(name):
    torch.manual_seed(0)
    make_one, spec, _ = BACKBONES[name]
    return make_one(spec, weights="random", dtype=torch.float32).eval()


def inputs(name, length=7):
    draw = torch.Generator().manual_seed(2)
    given = {
        "inputs_embeds": torch.randn(2, length, 64, generator=draw),
        "attention_mask": torch.ones(2, length, dtype=torch.long),
    }
    if name == "chatglm":
        given["context_mask"] = torch.arange(length)[None].expand(2, -1) < length - 1
    return given


def states(name, backbone, given=None, **more):
    given = inputs(name) if given is None else given
    if name == "t5":
        return backbone(**given, decoder_input_ids=torch.arange(8).reshape(2, 4)).logits
    decoder = backbone.get_decoder()
    return decoder(use_cache=False, **given, **more).last_hidden_state


def gradients(name, backbone, mark, **more):
    backbone.requires_grad_(False)
    chosen = {key: weight for key, weight in backbone.named_parameters() if mark in key}
    for weight in chosen.values():
        weight.requires_grad_(True)
    states(name, backbone, **more).square().mean().backward()
    return {key: weight.grad for key, weight in chosen.items()}


@pytest.mark.parametrize("name", BACKBONES)
def test_lora_adapts_every_linear_layer_and_is_initially_zero(name):
    backbone, targets = build(name), BACKBONES[name][2]
    with torch.no_grad():
        before = states(name, backbone)
        blocks = {
            key.removesuffix(".weight")
            for key, weight in backbone.named_parameters()
            if weight.ndim == 2 and key.endswith("weight")
        }
        add_lora(backbone, Lora(rank=2, alpha=4, targets=targets))
        assert states(name, backbone.eval()).equal(before)
    adapted = {
        key.partition(".lora_A")[0] for key, _ in backbone.named_parameters() if "lora_A" in key
    }
    left = {key.rpartition(".")[2] for key in blocks - adapted}
    assert left <= {
        "embed_tokens", "embed_positions", "lm_head", "shared", "word_embeddings",
        "relative_attention_bias",
    }  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_adapters_follow_both_sublayers_and_are_initially_close_to_the_identity(name):
    backbone = build(name)
    with torch.no_grad():
        before = states(name, backbone)
    spec = Adapter(bottleneck=8, targets=LAST.get(name, ("o_proj", "down_proj")))
    adapter.add(backbone, spec)
    with torch.no_grad():
        after = states(name, backbone)
    assert not after.equal(before)
    torch.testing.assert_close(after, before, atol=0.05, rtol=0.05)
    added = [key for key, _ in backbone.named_parameters() if spec.parameter_marker in key]
    blocks = 2 * 2 + 2 * 3 if name == "t5" else 2 * 2  # T5's decoder has cross-attention
    assert len(added) == 4 * blocks
    grads = gradients(name, backbone, spec.parameter_marker)
    assert all(grad.abs().sum() > 0 for grad in grads.values())
    assert all("lora_" not in key and "prefix" not in key for key in grads)


def test_adapters_have_the_published_size():
    bottleneck = adapter.Bottleneck(64, 8)
    assert sum(weight.numel() for weight in bottleneck.parameters()) == 2 * 8 * 64 + 64 + 8
    assert bottleneck.down.weight.abs().max() <= 0.02  # §3.6: two standard deviations


@pytest.mark.parametrize("make_spec", [lambda t: Lora(rank=2, alpha=2, targets=t), None])
def test_an_unknown_target_is_refused(make_spec):
    backbone = build("opt")
    line = "no linear layer is named 'o_proj', the backbone has fc1, fc2, k_proj, lm_head, out_proj"
    with pytest.raises(SpecError, match=line):
        if make_spec is None:
            adapter.add(backbone, Adapter(targets=("fc2", "o_proj")))
        else:
            add_lora(backbone, make_spec(("q_proj", "o_proj")))
    assert not any("lora" in key or "adapter" in key for key, _ in backbone.named_parameters())


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("hidden", [None, 16])
def test_a_prefix_equals_a_transformers_cache_with_the_same_keys(name, hidden):
    backbone = build(name)
    plain = build(name)
    prefix.add(backbone, Prefix(length=3, hidden=hidden))
    backbone.get_decoder().prefix.rows.data *= 30  # so that it has an effect
    given = inputs(name)
    with torch.no_grad():
        got = states(name, backbone, given)
        assert (got - states(name, plain, given)).abs().max() > 1e-3
        if name == "chatglm":  # its positions depend on its masks, so no cache is equivalent
            return
        made = backbone.get_decoder().prefix()
        cache = DynamicCache(config=plain.config)
        for layer, (keys, values) in enumerate(made):
            cache.update(*(part.expand(2, -1, -1, -1) for part in (keys, values)), layer)
        wanted = plain.get_decoder()(
            inputs_embeds=given["inputs_embeds"],
            attention_mask=torch.ones(2, 10, dtype=torch.long),
            position_ids=torch.arange(7)[None].expand(2, -1),
            past_key_values=cache,
        ).last_hidden_state
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_decoding_with_a_prefix_and_a_cache_equals_full_forward_passes(name):
    backbone, given = build(name), inputs(name)
    given["attention_mask"][1, :2] = 0
    prefix.add(backbone, Prefix(length=3, hidden=16))
    backbone.get_decoder().prefix.rows.data *= 30
    answer_bt = backbone.generate(
        **given, max_new_tokens=4, do_sample=False, use_cache=True, eos_token_id=None
    )
    for step in range(4):
        with torch.no_grad():
            last = states(name, backbone, given)[:, -1]
            chosen = backbone.get_output_embeddings()(last).argmax(-1)
            new = backbone.get_input_embeddings()(chosen)[:, None]
        assert answer_bt[:, step].equal(chosen)
        given["inputs_embeds"] = torch.cat([given["inputs_embeds"], new], dim=1)
        given["attention_mask"] = torch.nn.functional.pad(given["attention_mask"], (0, 1), value=1)


def test_a_prefix_works_with_padding_and_without_a_mask():
    backbone = build("llama")
    prefix.add(backbone, Prefix(length=3))
    given = inputs("llama")
    with torch.no_grad():
        whole = states("llama", backbone, given)
        bare = states("llama", backbone, {"inputs_embeds": given["inputs_embeds"]})
        noise = torch.randn(2, 2, 64)
        padded = {
            "inputs_embeds": torch.cat([given["inputs_embeds"], noise], dim=1),
            "attention_mask": torch.nn.functional.pad(given["attention_mask"], (0, 2)),
        }
        beside = states("llama", backbone, padded)[:, :7]
    torch.testing.assert_close(bare, whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(beside, whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("add", "spec"),
    [(prefix.add, Prefix(length=3, hidden=16)), (adapter.add, Adapter(bottleneck=8))],
    ids=["prefix", "adapter"],
)
def test_activation_checkpointing_gives_the_same_gradients(add, spec):
    found = []
    for recompute in (False, True):
        backbone = build("llama").train()
        add(backbone, spec)
        if recompute:
            backbone.activation_checkpointing_enable({"use_reentrant": False})
        found.append(gradients("llama", backbone, spec.parameter_marker))
    assert found[0]
    for key, grad in found[0].items():
        assert grad.abs().sum() > 0
        torch.testing.assert_close(found[1][key], grad, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("fusion", ["gated", "expert"])
def test_a_prefix_works_with_fusion_inside_the_backbone(fusion):
    backbone, given = build("llama"), inputs("llama")
    if fusion == "gated":
        spec = GatedCrossAttention(every_n_layers=1, heads=2, head_width=8)
        gated_cross_attention.add(backbone, spec)
        one = torch.tensor([0]), torch.tensor([2])
        extra = gated_cross_attention.decoder_kwargs(torch.randn(1, 4, 64), *one, (2, 7))
    else:
        visual_expert.add(backbone, VisualExpert())
        extra = {"vision_mask": torch.arange(7)[None].expand(2, -1) < 3}
    prefix.add(backbone, Prefix(length=3, hidden=16))
    grads = gradients("llama", backbone, "prefix", **extra)
    assert all(grad.abs().sum() > 0 for grad in grads.values())
    with inject_decoder_kwargs(backbone.get_decoder(), extra):
        answer = backbone.generate(**given, max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert answer.shape == (2, 2)


def test_prefixes_refuse_unsupported_backbones():
    with pytest.raises(SpecError, match="requires a causal backbone, 't5' is seq2seq"):
        Prefix().check(BACKBONES["t5"][1])
    backbone = build("llama")
    backbone.config._attn_implementation = "flash_attention_2"
    with pytest.raises(SpecError, match="does not support flash_attention_2 attention"):
        prefix.add(backbone, Prefix())


@pytest.mark.parametrize("name", ["llama", "opt", "t5"])
def test_qlora_approximates_the_backbone_and_trains_only_its_adapters(name):
    pytest.importorskip("bitsandbytes")
    backbone = build(name)
    with torch.no_grad():
        before = states(name, backbone)
    qlora.add(backbone, QLora(rank=2, alpha=4, targets=BACKBONES[name][2]))
    with torch.no_grad():
        after = states(name, backbone.eval())
    assert 0 < (after - before).norm() / before.norm() < 0.2
    bits = [key for key, weight in backbone.named_parameters() if weight.dtype == torch.uint8]
    assert len(bits) == {"opt": 12, "t5": 32, "llama": 14}[name]
    for weight in backbone.parameters():
        assert weight.dtype in (torch.uint8, torch.float32)
    grads = gradients(name, backbone, "lora_")
    assert all(grad.abs().sum() > 0 for key, grad in grads.items() if "lora_B" in key)


@pytest.mark.parametrize("dora", [False, True])
def test_qlora_counts_its_weights_on_the_meta_device(dora):
    pytest.importorskip("bitsandbytes")
    with torch.device("meta"):
        backbone = build("llama")
        before = sum(weight.numel() for weight in backbone.parameters())
        qlora.add(backbone, QLora(rank=2, alpha=4, use_dora=dora))
    weights = dict(backbone.named_parameters())
    assert sum(w.numel() for key, w in weights.items() if "lora_" not in key) == before
    assert any("lora_magnitude_vector" in key for key in weights) == dora


def test_qlora_without_bitsandbytes_is_an_error(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(SpecError, match=r"needs bitsandbytes.*pip install mmloom\[qlora\]"):
        qlora.add(build("llama"), QLora())


def test_only_four_bit_weights_cannot_be_partitioned():
    assert [spec.zero3 for spec in (Lora, QLora, Prefix, Adapter)] == [True, False, True, True]
    assert replace(QLora(), rank=8).rank == 8
