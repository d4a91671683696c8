"""ViT-22B: the paper's equations, timm's parallel block, the published count."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.encoders.vit_22b import ParallelLayer, build
from model.spec import SpecError
from model.spec.image_processor import squash
from model.spec.vit import Vit22B

RECORDED = Path(__file__).parents[1] / "recorded" / "vit_22b.safetensors"
SPEC = replace(Vit22B().tiny(), processor=squash(16), patch_size=4)


def convert_state_dict(state):
    """Rename timm's tensors: its first layer merges the MLP's with queries, keys and values."""
    ours = {
        "patches.weight": state["patch_embed.proj.weight"],
        "patches.bias": state["patch_embed.proj.bias"],
        "positions": state["pos_embed"],
        "norm.weight": state["norm.weight"],
    }
    for number in range(SPEC.layers):
        theirs, own = f"blocks.{number}.", f"layers.{number}."
        joined = state[theirs + "in_proj.weight"]
        ours[own + "mlp.0.weight"], ours[own + "qkv.weight"] = joined.split([64, 96])
        ours[own + "mlp.0.bias"] = state[theirs + "mlp_bias"]
        ours[own + "norm.weight"] = state[theirs + "in_norm.weight"]
        ours[own + "query_norm.weight"] = state[theirs + "q_norm.weight"]
        ours[own + "key_norm.weight"] = state[theirs + "k_norm.weight"]
        for kind in ("weight", "bias"):
            ours[f"{own}out.{kind}"] = state[f"{theirs}attn_out_proj.{kind}"]
            ours[f"{own}mlp.2.{kind}"] = state[f"{theirs}mlp_out_proj.{kind}"]
    return {name: value.contiguous() for name, value in ours.items()}


def test_features_equal_those_of_timms_parallel_blocks(tmp_path):
    recorded = load_file(RECORDED)
    save_file(convert_state_dict(recorded), tmp_path / "own.safetensors")
    spec = replace(SPEC, weights=str(tmp_path / "own.safetensors"))
    encoder = build(spec, weights="pretrained", dtype=torch.float32)
    with torch.no_grad():
        features_bnd = encoder(recorded["input"])
    assert features_bnd.shape == (2, spec.tokens, spec.width)
    torch.testing.assert_close(features_bnd, recorded["output"], atol=1e-5, rtol=0)


def test_a_layer_equals_the_papers_equations():
    torch.manual_seed(0)
    layer, heads, side = ParallelLayer(8, 2, 12), 2, 4
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    tokens_nd = torch.randn(3, 8)

    def normed(values, weight):
        return values / (values.square().mean() + 1e-6).sqrt() * weight

    read_nd = torch.stack([normed(token, layer.norm.weight) for token in tokens_nd])
    query, key, value = (read_nd @ weight.T for weight in layer.qkv.weight.chunk(3))
    attended_nd = torch.zeros(3, 8)
    for head in range(heads):
        of = slice(side * head, side * head + side)
        for row in range(3):
            q = normed(query[row, of], layer.query_norm.weight)
            keys = [normed(key[other, of], layer.key_norm.weight) for other in range(3)]
            match = torch.stack([q @ k / side**0.5 for k in keys]).softmax(dim=0)
            attended_nd[row, of] = sum(match[other] * value[other, of] for other in range(3))
    attended_nd = attended_nd @ layer.out.weight.T + layer.out.bias
    hidden = torch.nn.functional.gelu(read_nd @ layer.mlp[0].weight.T + layer.mlp[0].bias)
    mlp_nd = hidden @ layer.mlp[2].weight.T + layer.mlp[2].bias
    want_nd = tokens_nd + mlp_nd + attended_nd
    torch.testing.assert_close(layer(tokens_nd[None])[0], want_nd, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("side", "tokens"), [(224, 256), (756, 2916)])
def test_the_full_size_has_the_published_count(side, tokens):
    spec = Vit22B(processor=squash(side))
    with torch.device("meta"):
        encoder = build(spec, weights="random", dtype=torch.bfloat16)
        assert encoder(torch.empty(1, *spec.shape)).shape == (1, tokens, 6144)
    # Dehghani et al. 2023, table 1: 21743M, which are the layers' matrices to the million.
    matrices = sum(weight.numel() for weight in encoder.layers.parameters() if weight.dim() == 2)
    assert round(matrices / 1e6) == 21743
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert abs(count - 21743e6) < 0.002 * 21743e6


def test_unpublished_weights_are_an_error():
    with pytest.raises(SpecError, match="not published"):
        build(SPEC, weights="pretrained", dtype=torch.float32)
