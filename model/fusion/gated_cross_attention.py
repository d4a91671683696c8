"""Flamingo's GATED XATTN-DENSE layers (Alayrac et al. 2022, §2.2 and appendix A.1.2).

Shapes: b sequences, t text positions, d width, m media of a sequence, k tokens of a medium,
x = m·k, n media in all sequences, h heads, c width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from model.spec import SpecError
from model.spec.fusion import GatedCrossAttention

NO_MEDIUM = -1
"""Index of a position that no medium precedes."""


class CrossAttention(nn.Module):
    """Attention from each text position to the tokens of one medium."""

    def __init__(self, spec: GatedCrossAttention, width: int) -> None:
        super().__init__()
        self.heads = spec.heads
        inner = spec.heads * spec.head_width
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(spec.media_width or width, 2 * inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)

    def forward(self, hidden_btd: Tensor, media_bmkd: Tensor, index_bt: Tensor) -> Tensor:
        """Return the attention output (b, t, d), zero where no medium precedes a position."""
        media, tokens = media_bmkd.shape[1:3]
        query_bhtc = self._split(self.query(self.norm(hidden_btd)))
        key_bhxc, value_bhxc = (
            self._split(half) for half in self.key_value(media_bmkd.flatten(1, 2)).chunk(2, dim=-1)
        )
        medium_x = torch.arange(media, device=index_bt.device).repeat_interleave(tokens)
        without_bt1 = (index_bt == NO_MEDIUM)[..., None]
        # A softmax over nothing is NaN: such a position attends to everything and is zeroed below.
        seen_b1tx = ((index_bt[..., None] == medium_x) | without_bt1)[:, None]
        attended_bhtc = F.scaled_dot_product_attention(
            query_bhtc, key_bhxc, value_bhxc, attn_mask=seen_b1tx
        )
        attended_btd: Tensor = self.output(attended_bhtc.transpose(1, 2).flatten(2))
        return attended_btd.masked_fill(without_bt1, 0.0)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Dense(nn.Module):
    """The feed-forward layers after the attention."""

    def __init__(self, spec: GatedCrossAttention, width: int) -> None:
        super().__init__()
        self.squared = spec.activation == "squared_relu"
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, spec.mlp_factor * width, bias=False)
        self.down = nn.Linear(spec.mlp_factor * width, width, bias=False)

    def forward(self, hidden_btd: Tensor) -> Tensor:
        """Return the output (b, t, d)."""
        inner = self.up(self.norm(hidden_btd))
        new_btd: Tensor = self.down(F.relu(inner).square() if self.squared else F.gelu(inner))
        return new_btd


class GatedBlock(GradientCheckpointingLayer):
    """Attention to the media, then feed-forward layers, each with a gate that starts closed."""

    def __init__(self, spec: GatedCrossAttention, width: int) -> None:
        super().__init__()
        self.attention = CrossAttention(spec, width)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.dense = Dense(spec, width)
        self.dense_gate = nn.Parameter(torch.zeros(1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, hidden_btd: Tensor, media_bmkd: Tensor, index_bt: Tensor) -> Tensor:
        """Return the hidden states (b, t, d) after both layers; tanh gates, as in §2.2."""
        attended_btd = self.attention(hidden_btd, media_bmkd.to(hidden_btd.dtype), index_bt)
        hidden_btd = hidden_btd + self.attention_gate.tanh() * attended_btd
        new_btd: Tensor = hidden_btd + self.dense_gate.tanh() * self.dense(hidden_btd)
        return new_btd


class GatedLayer(nn.Module):
    """A gated block followed by one of the backbone's own layers."""

    def __init__(self, gated: GatedBlock, layer: nn.Module) -> None:
        super().__init__()
        self.gated = gated
        self.layer = layer
        self.attention_type = getattr(layer, "attention_type", None)  # some decoders ask for it

    def forward(
        self,
        hidden_btd: Tensor,
        *args: Any,  # noqa: ANN401 -- the layer's own
        media: Tensor,
        media_index: Tensor,
        **more: Any,  # noqa: ANN401 -- the layer's own
    ) -> Any:  # noqa: ANN401
        """Return the layer's output for hidden states that have attended to the media.

        Args:
            hidden_btd: the hidden states.
            *args: the layer's.
            media: (b, m, k, d).
            media_index: (b, t), the medium that each position attends to, or `NO_MEDIUM`.
            **more: the layer's.
        """
        return self.layer(self.gated(hidden_btd, media, media_index), *args, **more)


def add(backbone: PreTrainedModel, spec: GatedCrossAttention) -> None:
    """Add the new layers to a causal backbone, in place; initially they are the identity.

    Its decoder then requires `media` and `media_index`; see `decoder_kwargs`.

    Raises:
        SpecError: a class whose layers are not where those of most classes are.
    """
    width, dtype = backbone.config.hidden_size, next(backbone.parameters()).dtype
    layers = getattr(backbone.get_decoder(), "layers", None)
    if layers is None:
        raise SpecError(
            f"fusion: {spec.kind!r} does not know the layers of {type(backbone).__name__}"
        )
    for number in range(0, len(layers), spec.every_n_layers):
        layers[number] = GatedLayer(GatedBlock(spec, width).to(dtype), layers[number])


def decoder_kwargs(
    media_nkd: Tensor, row_n: Tensor, start_n: Tensor, shape_bt: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the decoder's keyword arguments for media in any order.

    Args:
        media_nkd: tokens of all media; n may be 0.
        row_n: index of the sequence that each medium is in.
        start_n: first position that attends to each medium; the next medium's start ends its range.
        shape_bt: numbers of sequences and positions.

    Returns:
        `media` (b, m, k, d), padded with zeros where a sequence has fewer media than another, m at
        least 1; `media_index` (b, t).
    """
    rows, length = shape_bt
    order_n = torch.argsort(row_n * (length + 1) + start_n, stable=True)
    row_n, start_n = row_n[order_n], start_n[order_n]
    counts_b = torch.bincount(row_n, minlength=rows)
    first_b = counts_b.cumsum(0) - counts_b
    slot_n = torch.arange(len(row_n), device=row_n.device) - first_b[row_n]
    most = max(1, int(counts_b.max()))
    padding = media_nkd.new_zeros(rows, most, *media_nkd.shape[1:])
    media_bmkd = padding.index_put((row_n, slot_n), media_nkd[order_n])
    starts_bt = torch.zeros(rows, length + 1, dtype=torch.long, device=row_n.device)
    starts_bt.index_put_((row_n, start_n), torch.ones_like(row_n), accumulate=True)
    return {"media": media_bmkd, "media_index": starts_bt.cumsum(1)[:, :length] + NO_MEDIUM}


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of one OpenFlamingo block (mlfoundations/open_flamingo) to ours."""
    names = {
        "attn.norm": "attention.norm",
        "attn.to_q": "attention.query",
        "attn.to_kv": "attention.key_value",
        "attn.to_out": "attention.output",
        "ff.0": "dense.norm",
        "ff.1": "dense.up",
        "ff.3": "dense.down",
    }
    gates = {"attn_gate": "attention_gate", "ff_gate": "dense_gate"}
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        ours[gates[name] if name in gates else f"{names[stem]}.{kind}"] = tensor
    return ours
