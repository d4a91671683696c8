"""Every backbone: full-scale size, behaviour of a tiny one, published names, wrong weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.backbones import chatglm, glm, llama, opt, palm, qwen, t5
from model.spec import ChatTemplate, SpecError
from model.spec.backbones import T5, ChatGlm, Glm, Llama, Opt, Palm, Qwen

RECORDED = Path(__file__).parents[1] / "recorded"
COMMON = {"weights": "", "template": ChatTemplate()}
OPT_2_7B = Opt(width=2560, mlp_width=10_240, layers=32, heads=32, **COMMON)
OPT_6_7B = Opt(width=4096, mlp_width=16_384, layers=32, heads=32, **COMMON)
FLAN_T5_XL = T5(width=2048, mlp_width=5120, layers=24, heads=32, **COMMON)
FLAN_T5_XXL = T5(width=4096, mlp_width=10_240, layers=24, heads=64, **COMMON)
UL2 = {"width": 4096, "mlp_width": 16_384, "heads": 16, "head_width": 256, "activation": "silu"}
UL2_20B = T5(layers=32, **UL2, **COMMON)
UL2_32B = T5(vocabulary=250_112, layers=50, **UL2, **COMMON)
QWEN_7B = Qwen(width=4096, mlp_width=11_008, layers=32, heads=32, **COMMON)
CHATGLM2_6B = Glm(width=4096, mlp_width=13_696, layers=28, heads=32, **COMMON)
CHATGLM_6B = ChatGlm(**COMMON)
PALM_8B = Palm(width=4096, mlp_width=16_384, layers=32, heads=16, **COMMON)
PALM_540B = Palm(width=18_432, mlp_width=73_728, layers=118, heads=48, **COMMON)


def llama_spec(width, mlp_width, layers, heads):
    sizes = {"width": width, "mlp_width": mlp_width, "layers": layers}
    more = {"heads": heads, "kv_heads": heads, "vocabulary": 32_000, "max_positions": 2048}
    return Llama(**sizes, **more, **COMMON)


LLAMA_7B = llama_spec(4096, 11_008, 32, 32)
LLAMA_13B = llama_spec(5120, 13_824, 40, 40)

MAKE = {
    ChatGlm: chatglm.build,
    Glm: glm.build,
    Llama: llama.build,
    Opt: opt.build,
    Palm: palm.build,
    Qwen: qwen.build,
    T5: t5.build,
}
CAUSAL = (LLAMA_7B, OPT_2_7B, QWEN_7B, CHATGLM2_6B, CHATGLM_6B, PALM_8B)


def build(spec, weights="random"):
    torch.manual_seed(0)
    return MAKE[type(spec)](spec, weights=weights, dtype=torch.float32).eval()


def extras(spec, length):
    """Return ChatGLM's additional arguments: all but the last position are context."""
    context = torch.arange(length)[None] < length - 1
    return {"context_mask": context} if spec.kind == "chatglm" else {}


@pytest.mark.parametrize(
    ("spec", "billions"),
    [
        (LLAMA_7B, 6.74),
        (LLAMA_13B, 13.02),
        (OPT_2_7B, 2.65),
        (OPT_6_7B, 6.66),
        (FLAN_T5_XL, 2.85),
        (FLAN_T5_XXL, 11.14),
        (UL2_20B, 19.59),
        (UL2_32B, 32.25),
        (QWEN_7B, 7.72),
        (CHATGLM2_6B, 6.24),
        (CHATGLM_6B, 6.17),
        (PALM_8B, 8.63),
        (PALM_540B, 540.36),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_full_size_has_the_published_number_of_parameters(spec, billions):
    with torch.device("meta"):
        backbone = build(spec)
    assert sum(weight.numel() for weight in backbone.parameters()) / 1e9 == pytest.approx(
        billions, abs=0.005
    )


@pytest.mark.parametrize("spec", CAUSAL, ids=lambda spec: spec.kind)
def test_decoding_with_a_cache_equals_full_forward_passes(spec):
    spec = spec.tiny()
    backbone = build(spec)
    draw = torch.Generator().manual_seed(1)
    embeddings_btd = torch.randn(2, 9, spec.width, generator=draw)
    mask_bt = torch.ones(2, 9, dtype=torch.long)
    mask_bt[1, :3] = 0  # padded on the left
    more = extras(spec, 9)
    answer_bt = backbone.generate(
        inputs_embeds=embeddings_btd,
        attention_mask=mask_bt,
        max_new_tokens=4,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        eos_token_id=None,
        **more,
    )
    for step in range(4):
        with torch.no_grad():
            hidden_btd = backbone.get_decoder()(
                inputs_embeds=embeddings_btd, attention_mask=mask_bt, use_cache=False, **more
            ).last_hidden_state
            chosen = backbone.get_output_embeddings()(hidden_btd[:, -1]).argmax(-1)
            grown = backbone.get_input_embeddings()(chosen)[:, None]
        assert answer_bt[:, step].equal(chosen)
        embeddings_btd = torch.cat([embeddings_btd, grown], dim=1)
        mask_bt = torch.nn.functional.pad(mask_bt, (0, 1), value=1)


@pytest.mark.parametrize("spec", CAUSAL, ids=lambda spec: spec.kind)
def test_right_padding_changes_nothing(spec):
    spec = spec.tiny()
    backbone = build(spec).train()  # there is no dropout either
    embeddings_btd = torch.randn(1, 8, spec.width)
    padded_btd = torch.cat([embeddings_btd, torch.randn(1, 3, spec.width)], dim=1)
    mask_bt = torch.tensor([[1] * 8 + [0] * 3])
    context = {"context_mask": torch.arange(11)[None] < 4} if spec.kind == "chatglm" else {}
    short = {name: mask[:, :8] for name, mask in context.items()}
    decoder = backbone.get_decoder()
    with torch.no_grad():
        alone = decoder(inputs_embeds=embeddings_btd, attention_mask=mask_bt[:, :8], **short)
        beside = decoder(inputs_embeds=padded_btd, attention_mask=mask_bt, **context)
    torch.testing.assert_close(
        beside.last_hidden_state[:, :8], alone.last_hidden_state, atol=1e-5, rtol=1e-5
    )


def test_t5_accepts_embeddings_and_its_output_matrix_is_untied():
    spec = FLAN_T5_XL.tiny()
    backbone = build(spec)
    assert backbone.lm_head.weight is not backbone.shared.weight
    assert backbone.encoder.embed_tokens.weight is backbone.shared.weight
    embeddings_btd = torch.randn(2, 7, spec.width)
    mask_bt = torch.ones(2, 7, dtype=torch.long)
    labels_bt = torch.randint(0, spec.vocabulary, (2, 5))
    loss = backbone(inputs_embeds=embeddings_btd, attention_mask=mask_bt, labels=labels_bt).loss
    assert 5.5 < loss < 7.5  # ln 384 = 5.95: logits of unit size
    answer = backbone.generate(
        inputs_embeds=embeddings_btd, attention_mask=mask_bt, max_new_tokens=3, do_sample=False
    )
    assert answer.shape[0] == 2


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "silu"])
def test_t5_uses_the_activation_of_the_spec(activation):
    spec = T5(width=64, mlp_width=128, layers=1, heads=2, activation=activation, **COMMON).tiny()
    backbone = build(spec)
    blocks = (backbone.encoder.block[0].layer[1], backbone.decoder.block[0].layer[2])
    names = {type(block.DenseReluDense.act).__name__ for block in blocks}
    wanted = {"gelu_new": "NewGELUActivation", "gelu": "GELUActivation", "silu": "SiLUActivation"}
    assert names == {wanted[activation]}


def recorded(name):
    arrays = load_file(RECORDED / f"{name}.safetensors")
    state = {
        key.removeprefix("weights."): value for key, value in arrays.items() if "weights." in key
    }
    return state, arrays


SMALL = {"weights": "", "vocabulary": 48, "width": 32, "layers": 2, "heads": 4}
TEMPLATE = {"template": ChatTemplate()}
PUBLISHED = {
    "qwen": Qwen(mlp_width=48, **SMALL, **TEMPLATE),
    "chatglm2": Glm(mlp_width=40, **SMALL, **TEMPLATE),
    "chatglm": ChatGlm(mlp_width=64, **SMALL, **TEMPLATE),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_equal_those_of_the_published_code(name, tmp_path):
    state, arrays = recorded(name)
    # In two files, like the published checkpoints.
    half = len(state) // 2
    names = sorted(state)
    for number, part in enumerate((names[:half], names[half:])):
        save_file({key: state[key] for key in part}, tmp_path / f"model-{number}.safetensors")
    spec = PUBLISHED[name]
    backbone = build(replace(spec, weights=str(tmp_path)), "pretrained")
    more = {}
    if name == "chatglm":
        more["context_mask"] = torch.arange(10)[None] < torch.tensor([[5], [7]])
    with torch.no_grad():
        logits = backbone(
            input_ids=arrays["ids"], attention_mask=torch.ones_like(arrays["ids"]), **more
        ).logits
    torch.testing.assert_close(logits, arrays["logits"], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "spec", [OPT_2_7B, FLAN_T5_XL, PALM_8B, LLAMA_7B], ids=lambda spec: spec.kind
)
def test_a_transformers_checkpoint_is_loaded_unchanged(spec, tmp_path):
    spec = replace(spec.tiny(), weights=str(tmp_path))
    saved = build(spec)
    saved.save_pretrained(tmp_path)
    loaded = build(spec, "pretrained")
    own = loaded.state_dict()
    assert all(own[name].equal(tensor) for name, tensor in saved.state_dict().items())


@pytest.mark.parametrize("spec", [OPT_2_7B, FLAN_T5_XL], ids=lambda spec: spec.kind)
def test_a_checkpoint_of_another_size_is_refused(spec, tmp_path):
    build(spec.tiny()).save_pretrained(tmp_path)
    wider = replace(spec.tiny(), weights=str(tmp_path), mlp_width=256)
    with pytest.raises(SpecError, match=r"is 128, the preset says 256"):
        build(wider, "pretrained")


def test_t5_with_a_tied_output_matrix_is_refused(tmp_path):
    spec = replace(FLAN_T5_XL.tiny(), weights=str(tmp_path))
    backbone = build(spec)
    backbone.save_pretrained(
        tmp_path, state_dict={k: v for k, v in backbone.state_dict().items() if "lm_head" not in k}
    )
    with pytest.raises(SpecError, match=r"missing \['lm_head.weight'\]"):
        build(spec, "pretrained")


def test_a_published_checkpoint_must_fit_and_be_complete(tmp_path):
    state, _ = recorded("qwen")
    spec = replace(PUBLISHED["qwen"], weights=str(tmp_path))
    with pytest.raises(SpecError, match=r"no \*.safetensors"):
        build(spec, "pretrained")
    gone = state.pop("transformer.h.1.mlp.w2.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(SpecError, match=r"missing \['model.layers.1.mlp.gate_proj.weight'\]"):
        build(spec, "pretrained")
    save_file(
        state | {"transformer.h.1.mlp.w2.weight": gone[:, :16].clone()},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(
        SpecError, match=r"gate_proj.weight is \(48, 16\), the preset says \(48, 32\)"
    ):
        build(spec, "pretrained")


def test_chatglm_requires_a_context_mask():
    backbone = build(CHATGLM_6B.tiny())
    with pytest.raises(ValueError, match="context_mask"):
        backbone(input_ids=torch.ones(1, 3, dtype=torch.long))


def test_activation_checkpointing_of_chatglm_gives_the_same_gradients():
    found = []
    for recompute in (False, True):
        backbone = build(CHATGLM_6B.tiny()).train()
        if recompute:
            backbone.activation_checkpointing_enable({"use_reentrant": False})
        ids_bt = torch.arange(12).reshape(2, 6)
        context_bt = torch.arange(6)[None] < torch.tensor([[3], [4]])
        backbone(input_ids=ids_bt, context_mask=context_bt).logits.square().mean().backward()
        found.append({name: weight.grad for name, weight in backbone.named_parameters()})
    assert all(found[1][name].equal(grad) for name, grad in found[0].items())
