"""Qwen-VL's resampler: a square of queries, one cross-attention layer with 2-D positions.

Bai et al. 2023, *Qwen-VL* (arXiv:2308.12966), §2.1 and appendix.

Shapes: b media, f parts, n tokens of a part, d the encoder's width, q queries, v the backbone's
width, k tokens of a medium.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from model.input_projectors.attention import CrossAttention, initialise
from model.input_projectors.latents import Latents
from model.parts import each_part
from model.spec import ProjectorShape
from model.spec.projectors import QwenResampler, square_side
from model.text import TextIds
from model.weights import Weights

NORM_EPSILON = 1e-6
"""Of the layer norms in the published weights."""


class QwenProjector(nn.Module):
    """Resampler, layer norm and a linear layer without bias; all of the backbone's width.

    Positions are added to the queries and keys, not to the values. They are those of a grid as
    large as the queries', resized for the keys.
    """

    positions_qv: Tensor
    positions_nv: Tensor

    def __init__(self, spec: QwenResampler, ends: ProjectorShape) -> None:
        super().__init__()
        width = ends.width_out
        self.queries = Latents(spec.queries, width)
        self.enter = nn.Linear(ends.width_in, width, bias=False)
        self.norm_queries = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.norm_features = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attention = CrossAttention(width, width // spec.head_width)
        self.norm_out = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.head = nn.Linear(width, width, bias=False)
        self.apply(initialise)
        positions_qv = grid_positions(square_side(spec.queries, spec.kind), width)
        sides = square_side(spec.queries, spec.kind), square_side(ends.tokens, spec.kind)
        self.register_buffer("positions_qv", positions_qv, persistent=False)
        self.register_buffer("positions_nv", resize(positions_qv, *sides), persistent=False)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return tokens (b, k, v) of features (b, f, n, d)."""
        return each_part(self._resample, features_bfnd)

    def _resample(self, features_xnd: Tensor) -> Tensor:
        values_xnv = self.norm_features(self.enter(features_xnd))
        # DeepSpeed casts parameters to the precision of the run, but no buffers.
        positions_nv, positions_qv = (
            self.positions_nv.to(values_xnv),
            self.positions_qv.to(values_xnv),
        )
        keys_xnv = values_xnv + positions_nv
        queries_xqv = self.norm_queries(self.queries(len(features_xnd))) + positions_qv
        read_xqv = self.attention(queries_xqv, keys_xnv, values_xnv)
        tokens_xqv: Tensor = self.head(self.norm_out(read_xqv))
        return tokens_xqv


def build(
    spec: QwenResampler, ends: ProjectorShape, *, weights: Weights = "random"
) -> QwenProjector:
    """Return a new resampler with random weights."""
    return QwenProjector(spec, ends)


def grid_positions(side: int, width: int) -> Tensor:
    """Return sine-cosine positions (side², width) of a square grid in raster order.

    The first half of the width is the column's, the second the row's; each is sines, then cosines,
    of frequencies 10000^(-4i / width) (Vaswani et al. 2017, §3.5, in two dimensions).
    """
    powers = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * 10_000.0**-powers
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = waves.repeat(side, 1)
    rows = waves.repeat_interleave(side, 0)
    return torch.cat([columns, rows], dim=1).float()


def resize(positions_qv: Tensor, side: int, wanted: int) -> Tensor:
    """Return positions of a grid of side `side`, bicubically resized to one of side `wanted`."""
    if side == wanted:
        return positions_qv.clone()
    grid = positions_qv.T.unflatten(1, (side, side))[None]
    sized = interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return sized[0].flatten(1).T


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Qwen-VL's tensors (`transformer.visual.` removed) to ours.

    The encoder's and the computed positions are left out.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "proj":
            found["head.weight"] = tensor.T
        elif name == "attn_pool.query":
            found["queries.tokens"] = tensor[None]
        elif name.startswith("attn_pool.attn.in_proj_"):
            kind = name.rpartition("_")[2]
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"attention.{part}.{kind}"] = piece
        else:
            for theirs, own in _NAMES:
                if name.startswith(theirs):
                    found[own + name.removeprefix(theirs)] = tensor
    return found


_NAMES = (
    ("attn_pool.kv_proj.", "enter."),
    ("attn_pool.attn.out_proj.", "attention.out."),
    ("attn_pool.ln_q.", "norm_queries."),
    ("attn_pool.ln_kv.", "norm_features."),
    ("ln_post.", "norm_out."),
)
