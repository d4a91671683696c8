"""Published checkpoints of the any-to-any systems: tensors of the true names and shapes."""

import pytest
import torch
from torch import nn

from model.build import build_on_meta
from model.convert import any_to_any
from model.freeze import set_trainable
from model.presets import system
from model.spec import SpecError

WIDTH = 4096  # of Vicuna 7B and LLaMA-2 7B


def transformer(prefix, width, heads):
    """Return the tensors of `nn.Transformer` as all of them make it, on the meta device."""
    module = nn.Transformer(
        d_model=width,
        nhead=heads,
        num_encoder_layers=4,
        num_decoder_layers=4,
        dim_feedforward=4 * width,
        norm_first=True,
        batch_first=True,
        device="meta",
    )
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def linear(prefix, width_in, width_out):
    return {
        f"{prefix}weight": torch.empty(width_out, width_in, device="meta"),
        f"{prefix}bias": torch.empty(width_out, device="meta"),
    }


def norm(prefix, width):
    return {f"{prefix}{name}": torch.empty(width, device="meta") for name in ("weight", "bias")}


def lora(prefix, rank, targets):
    shapes = {"lora_A": (rank, WIDTH), "lora_B": (WIDTH, rank)}
    return {
        f"{prefix}layers.{layer}.self_attn.{target}.{half}.default.weight": torch.empty(
            shape, device="meta"
        )
        for layer in range(32)
        for target in targets
        for half, shape in shapes.items()
    }


def rows(count):
    """Return a matrix with one row a token whose first element is its number."""
    return torch.arange(count)[:, None].expand(count, WIDTH)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TOKENS = 32_001  # Vicuna v0's


def next_gpt():
    """NExT-GPT's `pytorch_model.pt` after its third stage (`agent.py`, `save_model`)."""
    state = linear("llama_proj.", 1024, WIDTH)
    for suffix, tokens, width in (("", 77, 768), ("_video", 77, 1024), ("_audio", 1, 512)):
        prefix = f"gen_text_hidden_fcs{suffix}.0."
        state |= linear(f"{prefix}fc.", WIDTH, 512) | linear(f"{prefix}model.", 512, width)
        state |= transformer(f"{prefix}tfm.", 512, 4)
        state[f"{prefix}query_embs"] = torch.empty(1, tokens, 512, device="meta")
    new = 3 * 2 + 4 + 24 + 8
    state["llama_model.base_model.model.model.embed_tokens.weight"] = rows(TOKENS + new)
    state["llama_model.base_model.model.lm_head.weight"] = rows(TOKENS + new)
    return state | lora("llama_model.base_model.model.model.", 32, ATTENTION)


def minigpt_5(stage):
    """MiniGPT-5's `state_dict` (`model.py`, `on_save_checkpoint`); LoRA is in the second alone."""
    state = linear("fc.0.", WIDTH, 1024) | linear("fc.2.", 1024, 1024)
    state |= transformer("llm_to_t2i_mapping.", 1024, 8)
    state["t2i_decoder_prompt"] = torch.empty(1, 77, 1024, device="meta")
    inner = (
        "model.llama_model.model." if stage == 1 else "model.llama_model.base_model.model.model."
    )
    copy = "" if stage == 1 else "modules_to_save.default."
    state[f"{inner}embed_tokens.{copy}weight"] = rows(TOKENS + 9)
    state[f"{inner.removesuffix('model.')}lm_head.{copy}weight"] = rows(TOKENS + 9)
    return state if stage == 1 else state | lora(inner, 8, ("q_proj", "v_proj"))


def codi_2():
    """CoDi-2's trained tensors (`openllama.py`)."""
    state = {}
    for name, (first, second) in {
        "codi_llama_proj": (1024, WIDTH),
        "codi_llama_decode": (WIDTH, 1024),
    }.items():
        state |= linear(f"{name}.0.", first, second) | norm(f"{name}.2.", second)
        state |= linear(f"{name}.3.", second, second)
    return state | lora("llama_model.base_model.model.model.", 32, ATTENTION)


def trained(name, stage):
    preset = system(name)
    model = build_on_meta(preset.model, preset.stage(stage))
    names = set_trainable(model, preset.stage(stage).trainable)
    return {each: weight for each, weight in model.named_parameters() if each in names}


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def numbers(found, modality):
    """Return which rows of the published matrices are a modality's signal tokens."""
    signals = found[f"outputs.{modality}.signals.weight"][:, 0].tolist()
    assert signals == found[f"outputs.{modality}.head.weight"][:, 0].tolist()
    return signals


def test_next_gpts_weights_are_all_that_its_it_trains():
    found = any_to_any.next_gpt(next_gpt())
    assert shapes(found) == shapes(trained("next_gpt", "sft"))
    # <Img> </Img> [IMG0]… <Vid> </Vid> [VID0]… <Aud> </Aud> [AUD0]…
    assert numbers(found, "image") == list(range(TOKENS + 2, TOKENS + 6))
    assert numbers(found, "video") == list(range(TOKENS + 8, TOKENS + 32))
    assert numbers(found, "audio") == list(range(TOKENS + 34, TOKENS + 42))


def test_minigpt_5s_weights_are_all_that_its_stages_train():
    first, second = any_to_any.minigpt_5(minigpt_5(1)), any_to_any.minigpt_5(minigpt_5(2))
    ours = trained("minigpt_5", "pt")
    head = [name for name in ours if name.startswith("inputs.")]  # MiniGPT-4's
    assert head
    assert shapes(first) == {n: s for n, s in shapes(ours).items() if n not in head}
    in_it = shapes(trained("minigpt_5", "sft"))
    kept = {n: s for n, s in shapes(second).items() if n not in in_it}
    assert shapes(second) == in_it | kept
    assert {name.split(".")[3] for name in kept} == {"enter", "queries"}
    assert numbers(first, "image") == list(range(TOKENS, TOKENS + 8))


def test_codi_2s_weights_fit_its_picture_branch():
    ours, found = shapes(trained("codi_2", "sft")), shapes(any_to_any.codi_2(codi_2()))
    assert found.items() <= ours.items()
    missing = {name for name in ours if name not in found}
    assert {name.rpartition(".")[0] for name in missing if ".image." in name} == {
        "outputs.image.signals",
        "outputs.image.head",
    }
    assert all(name.startswith("outputs.") for name in missing)


def test_a_checkpoint_of_another_system_is_refused():
    with pytest.raises(SpecError, match=r"has no tensor codi_llama_decode\.…"):
        any_to_any.codi_2(next_gpt())
    with pytest.raises(SpecError, match="0 tensors are named embed_tokens, want one"):
        any_to_any.minigpt_5({**linear("fc.0.", WIDTH, 1024)})
