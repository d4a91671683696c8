"""Flamingo's perceiver resampler.

Alayrac et al. 2022, *Flamingo* (arXiv:2204.14198), §3.1 and appendix A.1.1, figure 5.

Shapes: b media, f frames, n tokens of a frame, d the encoder's width, w the resampler's width,
q latents, v the output width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.input_projectors.attention import CrossAttention, initialise
from model.input_projectors.latents import Latents
from model.spec import ProjectorShape
from model.spec.projectors import PerceiverResampler
from model.text import TextIds
from model.weights import Weights, rename


class SquaredReLU(nn.Module):
    """max(0, x)² (So et al. 2021, §3.2)."""

    def forward(self, values: Tensor) -> Tensor:
        """Return the activation of every value."""
        return torch.relu(values).square()


class ResamplerLayer(nn.Module):
    """Cross-attention to media and latents, then a feed-forward layer, both with residuals."""

    def __init__(self, spec: PerceiverResampler) -> None:
        super().__init__()
        self.norm_media = nn.LayerNorm(spec.width)
        self.norm_latents = nn.LayerNorm(spec.width)
        self.attention = CrossAttention(
            spec.width, spec.heads, head_width=spec.head_width, bias=False
        )
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(spec.width),
            nn.Linear(spec.width, 4 * spec.width, bias=False),
            SquaredReLU() if spec.activation == "squared_relu" else nn.GELU(),
            nn.Linear(4 * spec.width, spec.width, bias=False),
        )

    def forward(self, latents_bqw: Tensor, media_bnw: Tensor) -> Tensor:
        """Return the latents (b, q, w) after attending to media (b, n, w) and themselves."""
        queries_bqw = self.norm_latents(latents_bqw)
        read_bnw = torch.cat([self.norm_media(media_bnw), queries_bqw], dim=1)
        latents_bqw = latents_bqw + self.attention(queries_bqw, read_bnw, read_bnw)
        return latents_bqw + self.feed_forward(latents_bqw)


class PerceiverProjector(nn.Module):
    """Any number of frames to a fixed number of tokens."""

    def __init__(self, spec: PerceiverResampler, shape: ProjectorShape) -> None:
        super().__init__()
        same_width = shape.width_in == spec.width
        self.enter = nn.Identity() if same_width else nn.Linear(shape.width_in, spec.width)
        self.time = nn.Embedding(spec.max_frames, spec.width)
        self.latents = Latents(spec.latents, spec.width)
        self.layers = nn.ModuleList(ResamplerLayer(spec) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width)
        same_width = shape.width_out == spec.width
        self.head = nn.Identity() if same_width else nn.Linear(spec.width, shape.width_out)
        self.apply(initialise)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return tokens (b, q, v) of features (b, f, n, d)."""
        frames_f = torch.arange(features_bfnd.shape[1], device=features_bfnd.device)
        media_bfnw = self.enter(features_bfnd) + self.time(frames_f)[:, None]
        media_bnw = media_bfnw.flatten(1, 2)
        latents_bqw = self.latents(len(media_bnw))
        for layer in self.layers:
            latents_bqw = layer(latents_bqw, media_bnw)
        tokens_bqv: Tensor = self.head(self.norm(latents_bqw))
        return tokens_bqv


def build(
    spec: PerceiverResampler, shape: ProjectorShape, *, weights: Weights = "random"
) -> PerceiverProjector:
    """Return a new resampler with random weights."""
    return PerceiverProjector(spec, shape)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename OpenFlamingo's tensors (`perceiver.` removed) to ours; all are used."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, _, rest = name.removeprefix("layers.").partition(".")
        if name == "latents":
            found["latents.tokens"] = tensor[None]
        elif name == "frame_embs":
            found["time.weight"] = tensor
        elif rest == "0.to_kv.weight":
            attention = f"layers.{layer}.attention"
            found[f"{attention}.key.weight"], found[f"{attention}.value.weight"] = tensor.chunk(2)
        elif name.startswith("layers."):
            found[f"layers.{layer}.{rename(rest, _NAMES)}"] = tensor
        else:
            found[name] = tensor
    return found


_NAMES = (
    ("0.to_q.", "attention.query."),
    ("0.to_out.", "attention.out."),
    ("0.norm_", "norm_"),
    ("1.", "feed_forward."),
)
