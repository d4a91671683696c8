"""Flamingo's two components compared with Idefics', which differ in activation and norms only.

Idefics has ReLU for Flamingo's squared ReLU, RMS norms and gated feed-forward layers: the tests
lend ours theirs, so that attention, masks, residuals and gates are what is compared.
"""

import torch
from torch import nn
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from model.fusion.gated_cross_attention import GatedBlock, decoder_kwargs
from model.input_projectors import perceiver
from model.spec import ProjectorShape
from model.spec.fusion import GatedCrossAttention
from model.spec.projectors import PerceiverResampler

CONFIG = IdeficsConfig(
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=2,
    dropout=0.0,
    alpha_type="float",
    alpha_initializer="ones",
    vision_config={"embed_dim": 24},
    perceiver_config={"use_resampler": True, "qk_layer_norms_perceiver": False},
    attn_implementation="eager",
)


def drawn(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(mean=float(weight.ndim < 2), std=0.2)
    return module.eval()


@torch.no_grad()
def test_the_perceiver_resampler_equals_idefics_except_for_its_activation():
    theirs = drawn(
        IdeficsPerceiverResampler(CONFIG, embed_dim=24, depth=2, n_heads=2, head_dim=8, n_latents=3)
    )
    spec = PerceiverResampler(latents=3, width=24, layers=2, heads=2, head_width=8, max_frames=2)
    ours = perceiver.build(
        spec, ProjectorShape(segments=2, tokens=5, width_in=24, width_out=24)
    ).eval()
    nn.init.zeros_(ours.time.weight)  # Idefics has one picture and no time
    ours.latents.tokens.copy_(theirs.latents[None])
    ours.norm.load_state_dict(theirs.layer_norm.state_dict())
    for layer, (attention, dense) in zip(ours.layers, theirs.blocks, strict=True):
        layer.norm_media.load_state_dict(attention.context_layer_norm.state_dict())
        layer.norm_latents.load_state_dict(attention.latents_layer_norm.state_dict())
        layer.attention.query.weight.copy_(attention.q_proj.weight)
        layer.attention.key.weight.copy_(attention.k_proj.weight)
        layer.attention.value.weight.copy_(attention.v_proj.weight)
        layer.attention.out.weight.copy_(attention.output_proj.weight)
        layer.feed_forward[0].load_state_dict(dense.ln.state_dict())
        layer.feed_forward[1].weight.copy_(dense.fc.weight)
        layer.feed_forward[2] = nn.ReLU()
        layer.feed_forward[3].weight.copy_(dense.c_proj.weight)
    features = torch.randn(2, 2, 5, 24)
    torch.testing.assert_close(ours(features), theirs(features.flatten(1, 2)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_gated_layer_equals_idefics_except_for_its_norms_and_feed_forward():
    theirs = drawn(IdeficsGatedCrossAttentionLayer(CONFIG, layer_idx=0))
    spec = GatedCrossAttention(heads=2, head_width=16, media_width=24)
    ours = GatedBlock(spec, 32).eval()
    ours.attention.norm = theirs.input_layernorm
    ours.attention.query.weight.copy_(theirs.cross_attn.q_proj.weight)
    keys, values = theirs.cross_attn.k_proj.weight, theirs.cross_attn.v_proj.weight
    ours.attention.key_value.weight.copy_(torch.cat([keys, values]))
    ours.attention.output.weight.copy_(theirs.cross_attn.o_proj.weight)
    ours.dense = nn.Sequential(theirs.post_attention_layernorm, theirs.mlp)
    ours.attention_gate.copy_(theirs.alpha_cross_attn)
    ours.dense_gate.copy_(theirs.alpha_dense)

    hidden = torch.randn(2, 7, 32)
    # The first row has pictures before positions 1 and 4, the second before position 3.
    media = torch.randn(3, 5, 24)
    placed = decoder_kwargs(media, torch.tensor([0, 0, 1]), torch.tensor([1, 4, 3]), (2, 7))
    found = ours(hidden, placed["media"], placed["media_index"])

    pictures = torch.stack([media[:2].flatten(0, 1), torch.cat([media[2], torch.zeros(5, 24)])])
    last = torch.tensor([[-1, 0, 0, 0, 1, 1, 1], [-1, -1, -1, 0, 0, 0, 0]])
    of = torch.tensor([0] * 5 + [1] * 5)
    seen = (last[..., None] == of)[:, None]
    expected = theirs(
        hidden,
        image_hidden_states=pictures,
        image_attention_mask=torch.zeros(seen.shape).masked_fill(~seen, torch.finfo().min),
        cross_attention_gate=(last >= 0).float(),
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - hidden).abs().min() > 0
