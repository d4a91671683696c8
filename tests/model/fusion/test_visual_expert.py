"""CogVLM's visual expert: equal to LLaMA with identical experts, else to CogVLM."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.backbones import llama
from model.fusion.conditioning import inject_decoder_kwargs
from model.fusion.visual_expert import add, convert_state_dict, decoder_kwargs
from model.spec import ChatTemplate, SpecError
from model.spec.backbones import Llama, Opt
from model.spec.fusion import VisualExpert

RECORDED = Path(__file__).parents[1] / "recorded"
SIZES = {"vocabulary": 48, "width": 32, "mlp_width": 40, "layers": 2, "heads": 4, "kv_heads": 2}
LLAMA = Llama(weights="", max_positions=64, template=ChatTemplate(), **SIZES)
SPEC = VisualExpert()


def build(*, stir=False, spec=SPEC):
    torch.manual_seed(0)
    backbone = llama.build(LLAMA, weights="random", dtype=torch.float32).eval()
    add(backbone, spec)
    for name, weight in backbone.named_parameters():
        if stir and ".expert" in name:
            weight.data += 0.3 * torch.randn_like(weight)
    return backbone


def places(length=9):
    """Return the mask of a picture of 4 tokens in each row; the second row is left-padded."""
    mask_bt = torch.zeros(2, length, dtype=torch.bool)
    mask_bt[0, 1:5] = mask_bt[1, 3:7] = True
    attention_bt = torch.ones(2, length, dtype=torch.long)
    attention_bt[1, :2] = 0
    return attention_bt, [(mask_bt, 4)]


def embeddings(length=9):
    return torch.randn(2, length, 32, generator=torch.Generator().manual_seed(1))


def hidden(backbone, embeds, attention_bt, extra):
    return backbone.get_decoder()(
        inputs_embeds=embeds, attention_mask=attention_bt, use_cache=False, **extra
    ).last_hidden_state


def test_the_last_token_of_a_picture_is_the_language_experts_and_others_share_a_position():
    attention_bt, kinds = places()
    found = decoder_kwargs(SPEC, attention_bt, kinds)
    assert found["vision_mask"].long().tolist() == [
        [0, 1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0, 0],
    ]
    assert found["position_ids"].tolist() == [
        [0, 1, 2, 2, 3, 4, 5, 6, 7],
        [0, 0, 0, 1, 2, 2, 3, 4, 5],
    ]
    assert decoder_kwargs(replace(SPEC, shared_position=False), attention_bt, kinds).keys() == {
        "vision_mask"
    }


def test_adjacent_pictures_are_separate():
    mask_bt = torch.tensor([[False] + [True] * 8])
    found = decoder_kwargs(SPEC, torch.ones(1, 9, dtype=torch.long), [(mask_bt, 4)])
    assert found["vision_mask"].long().tolist() == [[0, 1, 1, 1, 0, 1, 1, 1, 0]]
    assert found["position_ids"].tolist() == [[0, 1, 2, 2, 3, 4, 5, 5, 6]]


@pytest.mark.parametrize("bias", [False, True])
def test_identical_experts_are_llama(bias):
    torch.manual_seed(0)
    plain = llama.build(LLAMA, weights="random", dtype=torch.float32).eval()
    backbone = build(spec=replace(SPEC, bias=bias))
    attention_bt, kinds = places()
    extra = decoder_kwargs(SPEC, attention_bt, kinds)
    with torch.no_grad():
        got = hidden(backbone, embeddings(), attention_bt, extra)
        position_ids = {"position_ids": extra["position_ids"]}
        wanted = hidden(plain, embeddings(), attention_bt, position_ids)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


def test_logits_equal_those_of_the_published_code():
    arrays = load_file(RECORDED / "visual_expert.safetensors")
    spec = VisualExpert(bias=True)
    backbone = llama.build(
        replace(LLAMA, rope_theta=500_000.0), weights="random", dtype=torch.float32
    ).eval()
    add(backbone, spec)
    weights = {k.removeprefix("weights."): v for k, v in arrays.items() if "weights." in k}
    backbone.load_state_dict(convert_state_dict(weights))
    media_mask_bt = arrays["types"].bool()
    extra = decoder_kwargs(spec, torch.ones_like(arrays["ids"]), [(media_mask_bt, 5)])
    assert extra["position_ids"].equal(arrays["positions"])
    embeds = backbone.get_input_embeddings()(arrays["ids"]).detach()
    embeds[media_mask_bt] = arrays["features"].flatten(0, 1)
    with torch.no_grad():
        states = hidden(backbone, embeds, torch.ones_like(arrays["ids"]), extra)
        logits = backbone.get_output_embeddings()(states)
    torch.testing.assert_close(logits, arrays["logits"], atol=2e-6, rtol=1e-5)


def test_the_visual_expert_affects_pictures_only():
    embeds = embeddings()
    attention_bt, kinds = places()
    extra = decoder_kwargs(SPEC, attention_bt, kinds)
    with torch.no_grad():
        plain = hidden(build(), embeds, attention_bt, extra)
        stirred = hidden(build(stir=True), embeds, attention_bt, extra)
    changed = (plain - stirred).abs().amax(-1) > 1e-6
    assert changed.tolist() == [[False] + [True] * 8, [False] * 3 + [True] * 6]


def test_every_weight_has_a_gradient_for_every_batch():
    none = torch.zeros(2, 9, dtype=torch.bool)
    for mask_bt in (none, ~none):
        backbone = build()
        out = hidden(
            backbone, embeddings(), torch.ones(2, 9, dtype=torch.long), {"vision_mask": mask_bt}
        )
        out.sum().backward()
        layers = dict(backbone.model.layers.named_parameters())
        assert all(weight.grad is not None for weight in layers.values())


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_decoding_equals_full_forward_passes(use_cache):
    backbone, embeds = build(stir=True), embeddings()
    attention_bt, kinds = places()
    attention_bt[:] = 1  # the case in which `generate` omits it
    extra = decoder_kwargs(SPEC, attention_bt, kinds)
    with inject_decoder_kwargs(backbone.get_decoder(), extra):
        answer_bt = backbone.generate(
            inputs_embeds=embeds,
            attention_mask=attention_bt,
            max_new_tokens=4,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=None,
        )
    for step in range(4):
        with torch.no_grad():
            last = hidden(backbone, embeds, attention_bt, extra)[:, -1]
            chosen = backbone.get_output_embeddings()(last).argmax(-1)
            new = backbone.get_input_embeddings()(chosen)[:, None]
        assert answer_bt[:, step].equal(chosen)
        embeds = torch.cat([embeds, new], dim=1)
        mask_bt = torch.nn.functional.pad(kinds[0][0], (0, step + 1))
        attention_bt = torch.ones(2, 10 + step, dtype=torch.long)
        extra = decoder_kwargs(SPEC, attention_bt, [(mask_bt, 4)])


def test_activation_checkpointing_gives_the_same_gradients():
    found = []
    attention_bt, kinds = places()
    for recompute in (False, True):
        backbone = build(stir=True).train()
        if recompute:
            backbone.activation_checkpointing_enable({"use_reentrant": False})
        extra = decoder_kwargs(SPEC, attention_bt, kinds)
        hidden(backbone, embeddings(), attention_bt, extra).square().mean().backward()
        found.append({name: w.grad for name, w in backbone.model.layers.named_parameters()})
    assert all(torch.allclose(found[1][name], grad, atol=1e-7) for name, grad in found[0].items())


def test_cogvlm_has_its_published_number_of_language_weights():
    sizes = {"vocabulary": 32_000, "width": 4096, "mlp_width": 11_008, "layers": 32}
    spec = replace(LLAMA, heads=32, kv_heads=32, **sizes)
    with torch.device("meta"):
        backbone = llama.build(spec, weights="random", dtype=torch.float32)
        add(backbone, SPEC)
    experts = sum(w.numel() for name, w in backbone.named_parameters() if ".expert" in name)
    assert experts / 1e9 == pytest.approx(6.5, abs=0.03)  # "6.5B trainable", paper, appendix A.2


def test_other_backbones_are_refused():
    spec = Opt(weights="", width=32, mlp_width=64, layers=1, heads=2, template=ChatTemplate())
    with pytest.raises(SpecError, match="requires a backbone of kind 'llama', not 'opt'"):
        SPEC.check(spec)
    SPEC.check(LLAMA)
