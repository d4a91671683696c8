"""Qwen-VL's resampler: a square grid of queries, one cross-attention layer with 2-D positions.

Bai et al. 2023, *Qwen-VL* (arXiv:2308.12966), §2.1 and appendix.

Shapes: b media, f segments, x segments of all media, n tokens of a segment, d the encoder's width,
q queries, v the backbone's width, k tokens of a medium.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from model.input_projectors.attention import CrossAttention, initialise
from model.input_projectors.latents import Latents
from model.segments import project_segments
from model.spec import ProjectorShape
from model.spec.projectors import QwenResampler, square_side
from model.text import TextIds
from model.weights import Weights

NORM_EPSILON = 1e-6
"""Of the layer norms in the published weights."""


class QwenProjector(nn.Module):
    """Resampler, layer norm and a linear layer without bias, all with the backbone's width.

    Position encodings are added to queries and keys, not to values. They are computed for the grid
    of queries and resized for the keys.
    """

    positions_qv: Tensor
    positions_nv: Tensor

    def __init__(self, spec: QwenResampler, shape: ProjectorShape) -> None:
        super().__init__()
        width = shape.width_out
        self.queries = Latents(spec.queries, width)
        self.enter = nn.Linear(shape.width_in, width, bias=False)
        self.norm_queries = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.norm_features = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attention = CrossAttention(width, width // spec.head_width)
        self.norm_out = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.head = nn.Linear(width, width, bias=False)
        self.apply(initialise)
        positions_qv = grid_positions(square_side(spec.queries, spec.kind), width)
        sides = square_side(spec.queries, spec.kind), square_side(shape.tokens, spec.kind)
        self.register_buffer("positions_qv", positions_qv, persistent=False)
        self.register_buffer("positions_nv", resize(positions_qv, *sides), persistent=False)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return tokens (b, k, v) of features (b, f, n, d)."""
        return project_segments(self._resample, features_bfnd)

    def _resample(self, features_xnd: Tensor) -> Tensor:
        values_xnv = self.norm_features(self.enter(features_xnd))
        # DeepSpeed casts parameters to the run's precision, but not buffers.
        positions_nv, positions_qv = (
            self.positions_nv.to(values_xnv),
            self.positions_qv.to(values_xnv),
        )
        keys_xnv = values_xnv + positions_nv
        queries_xqv = self.norm_queries(self.queries(len(features_xnd))) + positions_qv
        attended_xqv = self.attention(queries_xqv, keys_xnv, values_xnv)
        tokens_xqv: Tensor = self.head(self.norm_out(attended_xqv))
        return tokens_xqv


def build(
    spec: QwenResampler, shape: ProjectorShape, *, weights: Weights = "random"
) -> QwenProjector:
    """Return a new resampler with random weights."""
    return QwenProjector(spec, shape)


def grid_positions(side: int, width: int) -> Tensor:
    """Return sine-cosine position encodings (side², width) of a square grid in raster order.

    The first half of the width encodes the column, the second the row; each consists of sines, then
    cosines, with frequencies 10000^(-4i / width) (Vaswani et al. 2017, §3.5, in two dimensions).
    """
    powers = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * 10_000.0**-powers
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = waves.repeat(side, 1)
    rows = waves.repeat_interleave(side, 0)
    return torch.cat([columns, rows], dim=1).float()


def resize(positions_qv: Tensor, side: int, new_side: int) -> Tensor:
    """Return position encodings of a grid of side `side`, resized bicubically to `new_side`."""
    if side == new_side:
        return positions_qv.clone()
    grid = positions_qv.T.unflatten(1, (side, side))[None]
    resized = interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Qwen-VL's tensors (`transformer.visual.` removed) to ours.

    Tensors of the encoder and computed position encodings are dropped.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "proj":
            found["head.weight"] = tensor.T
        elif name == "attn_pool.query":
            found["queries.tokens"] = tensor[None]
        elif name.startswith("attn_pool.attn.in_proj_"):
            kind = name.rpartition("_")[2]
            for projection, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"attention.{projection}.{kind}"] = rows
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
