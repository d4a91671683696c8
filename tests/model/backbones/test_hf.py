"""Every family of language models gives transformers' own logits, packs, trains and generates."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from model import packing
from model.backbones import hf
from model.build import add_peft, build_backbone
from model.compose.backbones import backbone_from, lora_targets
from model.freeze import set_trainable
from model.presets import system
from model.spec import Lora, ModelSpec, SpecError
from model.spec.fusion import GatedCrossAttention, VisualExpert
from model.spec.peft import Adapter, Prefix
from tests.published_backbones import CAUSAL, SEQ2SEQ, VOCABULARY, save_backbone

LENGTHS = (3, 9, 2)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
EVERY = pytest.mark.parametrize("name", [*CAUSAL, *SEQ2SEQ])
EVERY_CAUSAL = pytest.mark.parametrize("name", CAUSAL)
SOME = pytest.mark.parametrize(
    "name", ["smollm2", "qwen3", "gemma-2", "gemma-3", "cohere", "t5", "t5-v1.1"]
)
"""Grouped queries, tied and untied matrices, and logits that are scaled or capped."""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Return a function: a family's name → the folder of its checkpoint."""
    return cache(lambda name: save_backbone(name, tmp_path_factory.mktemp("published") / name))


@pytest.fixture(scope="module")
def spec_of(folder_of):
    return cache(lambda name: backbone_from(str(folder_of(name))))


def ours(spec, dtype=torch.float32):
    return hf.build(spec, weights="pretrained", dtype=dtype).eval()


def theirs(name, folder, dtype=torch.float32):
    auto = AutoModelForCausalLM if name in CAUSAL else AutoModelForSeq2SeqLM
    return auto.from_pretrained(folder, dtype=dtype).eval()


def ids(seed=0, shape=(2, 12)):
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def our_logits(spec, backbone, ids_bt, mask_bt):
    """Return logits as `MultimodalLM` computes them: from embeddings, by the output layer alone."""
    inputs = {
        "inputs_embeds": backbone.get_input_embeddings()(ids_bt),
        "attention_mask": mask_bt,
    }
    if not spec.seq2seq:
        hidden = backbone.get_decoder()(**inputs, use_cache=False).last_hidden_state
    else:
        hidden = backbone.get_decoder()(
            input_ids=ids_bt,
            encoder_hidden_states=backbone.get_encoder()(**inputs).last_hidden_state,
            encoder_attention_mask=mask_bt,
            use_cache=False,
        ).last_hidden_state
    return backbone.get_output_embeddings()(hidden)


@EVERY
@torch.no_grad()
def test_logits_are_those_of_transformers(name, spec_of, folder_of):
    ids_bt = ids()
    mask_bt = torch.ones_like(ids_bt)
    mask_bt[1, :3] = 0  # padded on the left, as in generation
    more = {} if name in CAUSAL else {"decoder_input_ids": ids_bt}
    expected = theirs(name, folder_of(name))(
        input_ids=ids_bt, attention_mask=mask_bt, **more
    ).logits
    logits = our_logits(spec_of(name), ours(spec_of(name)), ids_bt, mask_bt)
    kept = mask_bt.bool() if name in CAUSAL else torch.ones_like(mask_bt, dtype=torch.bool)
    torch.testing.assert_close(logits[kept], expected[kept], **CLOSE)


@SOME
@torch.no_grad()
def test_logits_in_bf16_are_those_of_transformers(name, spec_of, folder_of):
    ids_bt = ids()
    mask_bt = torch.ones_like(ids_bt)
    more = {} if name in CAUSAL else {"decoder_input_ids": ids_bt}
    published = theirs(name, folder_of(name), torch.bfloat16)
    expected = published(input_ids=ids_bt, attention_mask=mask_bt, **more).logits
    backbone = ours(spec_of(name), torch.bfloat16)
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    logits = our_logits(spec_of(name), backbone, ids_bt, mask_bt)
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0.02)


@EVERY
@torch.no_grad()
def test_greedy_answers_are_those_of_transformers(name, spec_of, folder_of):
    ids_bt = ids()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask_bt = torch.ones_like(ids_bt)
    mask_bt[1, :3] = 0
    published, backbone = theirs(name, folder_of(name)), ours(spec_of(name))
    expected = published.generate(input_ids=ids_bt, attention_mask=mask_bt, **options)
    answers = backbone.generate(
        inputs_embeds=backbone.get_input_embeddings()(ids_bt), attention_mask=mask_bt, **options
    )
    assert answers.equal(expected[:, -answers.shape[1] :])


@EVERY_CAUSAL
def test_packed_samples_are_those_alone_and_so_are_gradients(name, spec_of):
    spec = spec_of(name)
    assert spec.supports_packing
    backbone = ours(spec)
    samples = [ids(seed, (1, length)) for seed, length in enumerate(LENGTHS)]
    embed = backbone.get_input_embeddings()
    alone_btd = torch.cat(
        [backbone.get_decoder()(inputs_embeds=embed(one)).last_hidden_state for one in samples], 1
    )
    packing.attend_within_samples(backbone)
    positions_bt = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    packed_btd = backbone.get_decoder()(
        inputs_embeds=embed(torch.cat(samples, 1)),
        use_cache=False,
        **packing.decoder_kwargs(backbone, positions_bt),
    ).last_hidden_state
    torch.testing.assert_close(packed_btd, alone_btd, **CLOSE)
    weight = next(
        p
        for n, p in backbone.named_parameters()
        if n.endswith("o_proj.weight") or n.endswith("self_attn.dense.weight")
    )
    grads = [
        torch.autograd.grad(states.square().sum(), weight)[0] for states in (packed_btd, alone_btd)
    ]
    torch.testing.assert_close(*grads, atol=1e-2, rtol=1e-3)


@EVERY
def test_all_linear_layers_of_the_blocks_learn_by_lora(name, spec_of):
    spec = spec_of(name)
    targets = lora_targets(spec)
    backbone = ours(spec)
    add_peft(backbone, Lora(rank=2, alpha=4, dropout=0.0, targets=targets))
    assert "lm_head" not in targets
    names = set_trainable(backbone, ["*lora_*"])
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in names} == set(targets)
    ids_bt = ids()
    our_logits(spec, backbone, ids_bt, torch.ones_like(ids_bt)).logsumexp(-1).sum().backward()
    grads = {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad}
    assert all(g.abs().max() > 0 for n, g in grads.items() if "lora_B" in n)


@pytest.mark.parametrize("name", ["qwen2.5", "gemma-3", "phi-2"])
@pytest.mark.parametrize(
    "peft", [Prefix(length=3, hidden=None), Adapter(bottleneck=4)], ids=lambda peft: peft.kind
)
def test_other_adapters_learn_and_generation_with_a_cache_equals_that_without(name, peft, spec_of):
    spec = spec_of(name)
    if isinstance(peft, Adapter):
        peft = replace(peft, targets=lora_targets(spec)[-1:])
    backbone = ours(spec)
    add_peft(backbone, peft)
    names = set_trainable(backbone, [f"*{peft.parameter_marker}*"])
    ids_bt = ids()
    mask_bt = torch.ones_like(ids_bt)
    our_logits(spec, backbone, ids_bt, mask_bt).logsumexp(-1).sum().backward()
    assert all(dict(backbone.named_parameters())[one].grad.abs().max() > 0 for one in names)
    inputs = {"inputs_embeds": backbone.get_input_embeddings()(ids_bt), "attention_mask": mask_bt}
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        cached, full = (
            backbone.generate(**inputs, **options, use_cache=use) for use in (True, False)
        )
    assert cached.equal(full)


@SOME
def test_a_whole_backbone_learns_and_is_saved(name, spec_of, tmp_path):
    spec = spec_of(name)
    backbone = ours(spec)
    ids_bt = ids()
    mask_bt = torch.ones_like(ids_bt)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-3)
    our_logits(spec, backbone, ids_bt, mask_bt).logsumexp(-1).mean().backward()
    optimizer.step()
    backbone.save_pretrained(tmp_path)
    saved = hf.build(
        replace(spec, weights=str(tmp_path)), weights="pretrained", dtype=torch.float32
    )
    with torch.no_grad():
        torch.testing.assert_close(
            our_logits(spec, saved.eval(), ids_bt, mask_bt),
            our_logits(spec, backbone, ids_bt, mask_bt),
        )


@EVERY
def test_a_tiny_one_and_one_on_meta_have_the_same_modules(name, spec_of):
    spec = spec_of(name)
    tiny = spec.tiny()
    assert (tiny.width, tiny.layers, tiny.heads, tiny.vocabulary) == (64, 2, 4, 384)
    assert (tiny.kv_heads < tiny.heads) == (spec.kv_heads < spec.heads)
    small = hf.build(tiny, weights="random", dtype=torch.bfloat16)
    with torch.device("meta"):
        meta = hf.build(spec, weights="random", dtype=torch.float32)
    assert [n for n, _ in small.named_parameters()] == [n for n, _ in meta.named_parameters()]


@EVERY
def test_the_sizes_are_those_of_the_modules(name, spec_of):
    spec = spec_of(name)
    backbone = ours(spec)
    assert backbone.get_input_embeddings().weight.shape == (spec.vocabulary, spec.width)
    shapes = {
        n.rpartition(".")[2]: m for n, m in backbone.named_modules() if hasattr(m, "out_features")
    }
    query = shapes.get("q_proj") or shapes.get("q")
    key = shapes.get("k_proj") or shapes.get("k")
    if query is not None:  # Phi-3 has one layer for both
        assert query.out_features == spec.heads * spec.head_width
        assert key.out_features == spec.kv_heads * spec.head_width
    assert {m.out_features for m in shapes.values()} & {spec.mlp_width, 2 * spec.mlp_width}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 400),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 4),
        ("rms_norm_eps", 1e-3),
        ("max_position_embeddings", 128),
        ("tie_word_embeddings", True),
        ("head_dim", 8),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5.0}),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
    ],
)
def test_a_folder_that_differs_is_refused_by_field_and_both_values(field, value, spec_of):
    spec = spec_of("qwen3")
    published = spec.config[field]
    changed = replace(spec, config=spec.config | {field: value})
    with pytest.raises(SpecError) as error:
        ours(changed)
    assert f"{field} is {published!r}, the preset says {value!r}" in str(error.value)


@EVERY_CAUSAL
def test_gated_cross_attention_starts_as_the_identity(name, spec_of, digits):
    spec = spec_of(name)
    model = ModelSpec(
        inputs=digits.model.inputs,
        backbone=spec,
        fusion=GatedCrossAttention(every_n_layers=1, heads=2, head_width=8),
    )
    stage = replace(system("digits").pt, precision="fp32")
    gated = build_backbone(model, stage, weights="pretrained").eval()
    ids_bt = ids()
    mask_bt = torch.ones_like(ids_bt)
    media = {"media": torch.randn(2, 1, 3, 32), "media_index": torch.zeros_like(ids_bt)}
    inputs = {"inputs_embeds": gated.get_input_embeddings()(ids_bt), "attention_mask": mask_bt}
    with torch.no_grad():
        closed = gated.get_decoder()(**inputs, **media, use_cache=False).last_hidden_state
        plain = ours(spec).get_decoder()(**inputs, use_cache=False).last_hidden_state
        torch.testing.assert_close(closed, plain, **CLOSE)
        for block in gated.get_decoder().layers:
            block.gated.attention_gate.fill_(1.0)
        opened = gated.get_decoder()(**inputs, **media, use_cache=False).last_hidden_state
    assert (opened - plain).abs().max() > 1e-3


def test_a_visual_expert_needs_a_llama(spec_of, digits):
    expert = VisualExpert(shared_position=False)
    stage = replace(system("digits").pt, precision="fp32")
    model = ModelSpec(inputs=digits.model.inputs, backbone=spec_of("llama-3"), fusion=expert)
    backbone = build_backbone(model, stage, weights="pretrained")
    assert any("expert_mlp" in n for n, _ in backbone.named_parameters())
    with pytest.raises(SpecError, match="requires a backbone of kind 'llama', not 'qwen3'"):
        replace(model, backbone=spec_of("qwen3"))
