"""MobileVLM's lightweight downsample projectors.

Chu et al. 2023, *MobileVLM* (arXiv:2312.16886), §3.3; 2024, *MobileVLM V2* (arXiv:2402.03766),
§3.2. The published weights of version 1 have MobileNetV3's hard swish and squeeze-and-excitation
(Howard et al. 2019, §5) between the convolutions, in addition to equation 4; so does ours.

Shapes: b media, f segments, x segments of all media, n tokens of a segment, d the encoder's width,
v the backbone's width, s side of a segment's token grid, k tokens of a medium.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from model.input_projectors.attention import initialise
from model.segments import project_segments
from model.spec import ProjectorShape
from model.spec.projectors import Ldp, square_side
from model.text import TextIds
from model.weights import Weights, rename

SQUEEZE = 4
"""Ratio of the block's width to the squeeze layer's, which is rounded to a multiple of 8."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (x, v, s, s)."""

    def forward(self, grid_xvss: Tensor) -> Tensor:
        """Return the grid, normalised at each position."""
        return super().forward(grid_xvss.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcitation(nn.Module):
    """Scale every channel by a weight in [0, 1] computed from the mean over all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = max(8, (width // SQUEEZE + 4) // 8 * 8)
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, width, 1)
        self.relu = nn.ReLU()
        self.scale = nn.Hardsigmoid()

    def forward(self, grid_xvss: Tensor) -> Tensor:
        """Return (x, v, s, s)."""
        mean_xv11 = grid_xvss.mean((2, 3), keepdim=True)
        return grid_xvss * self.scale(self.excite(self.relu(self.squeeze(mean_xv11))))


class SeparableBlock(nn.Module):
    """Depthwise, then pointwise convolution; with a residual if the grid keeps its size."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.depthwise = nn.Conv2d(
            width, width, 3, stride=stride, padding=1, groups=width, bias=False
        )
        self.norm = ChannelNorm(width)
        self.swish = nn.Hardswish()
        self.excitation = SqueezeExcitation(width)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm_out = ChannelNorm(width)

    def forward(self, grid_xvss: Tensor) -> Tensor:
        """Return the grid, downsampled by the stride."""
        mixed_xvss = self.excitation(self.swish(self.norm(self.depthwise(grid_xvss))))
        out_xvss: Tensor = self.norm_out(self.pointwise(mixed_xvss))
        return grid_xvss + out_xvss if self.residual else out_xvss


class PooledPositions(nn.Module):
    """Average pooling, then a depthwise convolution as position encoding, with a residual."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(stride)
        self.positions = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, grid_xvss: Tensor) -> Tensor:
        """Return the grid, downsampled by the stride."""
        pooled_xvss: Tensor = self.pool(grid_xvss)
        out_xvss: Tensor = pooled_xvss + self.positions(pooled_xvss)
        return out_xvss


class LdpProjector(nn.Module):
    """Two linear layers per token, then a downsampling of the token grid."""

    def __init__(self, spec: Ldp, shape: ProjectorShape) -> None:
        super().__init__()
        width = shape.width_out
        self.side = square_side(shape.tokens, spec.kind)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width_in, width), nn.GELU(), nn.Linear(width, width)
        )
        self.mlp.apply(initialise)
        self.downsample = (
            nn.Sequential(SeparableBlock(width, 1), SeparableBlock(width, spec.stride))
            if spec.version == 1
            else PooledPositions(width, spec.stride)
        )
        self.downsample.apply(_initialise_convolution)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return tokens (b, k, v) of features (b, f, n, d)."""
        return project_segments(self._downsample, features_bfnd)

    def _downsample(self, features_xnd: Tensor) -> Tensor:
        grid_xvss = self.mlp(features_xnd).transpose(1, 2).unflatten(2, (self.side, self.side))
        tokens_xkv: Tensor = self.downsample(grid_xvss).flatten(2).transpose(1, 2)
        return tokens_xkv


def build(spec: Ldp, shape: ProjectorShape, *, weights: Weights = "random") -> LdpProjector:
    """Return a new projector with random weights."""
    return LdpProjector(spec, shape)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename MobileVLM's tensors (`model.mm_projector.` removed) of either version to ours."""
    return {rename(name, _NAMES): tensor for name, tensor in state.items()}


_NAMES = (
    ("model.mlp.1.", "mlp.0."),
    ("model.mlp.3.", "mlp.2."),
    ("model.mb_block.1.", "downsample.0."),
    ("model.mb_block.2.", "downsample.1."),
    (".block.0.0.", ".depthwise."),
    (".block.0.1.", ".norm."),
    (".block.1.fc1.", ".excitation.squeeze."),
    (".block.1.fc2.", ".excitation.excite."),
    (".block.2.0.", ".pointwise."),
    (".block.2.1.", ".norm_out."),
    ("mlp.mlp.", "mlp."),
    ("peg.peg.0.", "downsample.positions."),
)


def _initialise_convolution(module: nn.Module) -> None:
    """Initialise a convolution so that it preserves the variance (He et al. 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
