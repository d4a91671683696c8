"""mPLUG-Owl's visual abstractor.

Ye et al. 2023, *mPLUG-Owl* (arXiv:2304.14178), §3.1.

Shapes: b media, f segments, x segments of all media, n tokens of a segment, d the encoder's width,
q queries, m the feed-forward width, k tokens of a medium, v the backbone's width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from model.input_projectors.attention import CrossAttention, initialise
from model.input_projectors.latents import Latents
from model.segments import project_segments
from model.spec import ProjectorShape
from model.spec.projectors import Abstractor
from model.text import TextIds
from model.weights import Weights, rename

GATED_NORM_EPSILON = 1e-6
"""Of the norm inside the feed-forward layer; the other norms have PyTorch's default."""


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) with a layer norm before its last linear layer."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, mlp_width)
        self.up = nn.Linear(width, mlp_width)
        self.norm = nn.LayerNorm(mlp_width, eps=GATED_NORM_EPSILON)
        self.down = nn.Linear(mlp_width, width)

    def forward(self, states_xqd: Tensor) -> Tensor:
        """Return (x, q, d)."""
        gated_xqm = silu(self.gate(states_xqd)) * self.up(states_xqd)
        out_xqd: Tensor = self.down(self.norm(gated_xqm))
        return out_xqd


class AbstractorLayer(nn.Module):
    """Cross-attention to queries and features, then a feed-forward layer.

    The published layer's first residual starts from the *normed* queries.
    """

    def __init__(self, spec: Abstractor, width: int) -> None:
        super().__init__()
        self.norm_queries = nn.LayerNorm(width)
        self.norm_features = nn.LayerNorm(width)
        self.attention = CrossAttention(width, spec.heads, dropout=spec.dropout)
        self.norm_feed_forward = nn.LayerNorm(width)
        self.feed_forward = GatedFeedForward(width, spec.mlp_width)

    def forward(self, queries_xqd: Tensor, features_xnd: Tensor) -> Tensor:
        """Return the queries (x, q, d) after attending to features (x, n, d) and themselves."""
        queries_xqd = self.norm_queries(queries_xqd)
        read_xnd = torch.cat([queries_xqd, self.norm_features(features_xnd)], dim=1)
        queries_xqd = queries_xqd + self.attention(queries_xqd, read_xnd, read_xnd)
        return queries_xqd + self.feed_forward(self.norm_feed_forward(queries_xqd))


class AbstractorProjector(nn.Module):
    """Query layers, a linear layer to the backbone's width, and an end token appended."""

    def __init__(self, spec: Abstractor, shape: ProjectorShape) -> None:
        super().__init__()
        self.queries = Latents(spec.queries, shape.width_in)
        self.layers = nn.ModuleList(
            AbstractorLayer(spec, shape.width_in) for _ in range(spec.layers)
        )
        self.head = nn.Linear(shape.width_in, shape.width_out)
        self.end = Latents(1, shape.width_out)
        self.temporal = TemporalQueries(spec.queries, shape) if spec.temporal else None
        self.apply(initialise)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return tokens (b, k, v) of features (b, f, n, d)."""
        if self.temporal is None:
            return project_segments(self._abstract, features_bfnd)
        several = features_bfnd.shape[1] > 1
        return self._abstract(features_bfnd.flatten(1, 2), self.temporal if several else None)

    def _abstract(self, features_xnd: Tensor, temporal: TemporalQueries | None = None) -> Tensor:
        count = len(features_xnd)
        queries_xqd = self.queries(count)
        own = queries_xqd.shape[1]
        if temporal is not None:
            queries_xqd = torch.cat([queries_xqd, temporal.queries(count)], dim=1)
        for layer in self.layers:
            queries_xqd = layer(queries_xqd, features_xnd)
        tokens_xqv = self.head(queries_xqd[:, :own])
        if temporal is not None:
            tokens_xqv = tokens_xqv + temporal.head(queries_xqd[:, own:])
        return torch.cat([tokens_xqv, self.end(count)], dim=1)


class TemporalQueries(nn.Module):
    """The additional queries of the video release, and the linear layer of their outputs."""

    def __init__(self, queries: int, shape: ProjectorShape) -> None:
        super().__init__()
        self.queries = Latents(queries, shape.width_in)
        self.head = nn.Linear(shape.width_in, shape.width_out)


def build(
    spec: Abstractor, shape: ProjectorShape, *, weights: Weights = "random"
) -> AbstractorProjector:
    """Return a new abstractor with random weights."""
    return AbstractorProjector(spec, shape)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename mPLUG-Owl's tensors to ours; those of other components are dropped."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _QUERIES:
            found[_QUERIES[name]] = tensor
        elif name.startswith("abstractor."):
            found[rename(name, _NAMES)] = tensor
    return found


_QUERIES = {
    "query_tokens": "queries.tokens",
    "temporal_query_tokens": "temporal.queries.tokens",
}
_NAMES = (
    ("abstractor.vit_eos", "end.tokens"),
    ("abstractor.temporal_visual_fc.", "temporal.head."),
    ("abstractor.visual_fc.", "head."),
    ("abstractor.encoder.", ""),
    ("crossattention.norm1.", "norm_queries."),
    ("crossattention.normk.", "norm_features."),
    ("crossattention.attention.", "attention."),
    ("crossattention.output.out_proj.", "attention.out."),
    ("crossattention.output.norm2.", "norm_feed_forward."),
    ("crossattention.output.mlp.w1.", "feed_forward.gate."),
    ("crossattention.output.mlp.w2.", "feed_forward.down."),
    ("crossattention.output.mlp.w3.", "feed_forward.up."),
    ("crossattention.output.mlp.ffn_ln.", "feed_forward.norm."),
)
