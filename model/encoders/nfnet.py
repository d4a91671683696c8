"""NFNet: a residual network without normalisation layers.

Brock et al. 2021, *High-Performance Large-Scale Image Recognition Without Normalization*
(arXiv:2102.06171); the standardisation of weights and the analytic variances of residual blocks are
those of Brock, De & Smith 2021 (arXiv:2101.08692).

Shapes: b pictures, c channels, hw height and width in pixels or cells, n tokens, d width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from model.encoders import pictures
from model.encoders.pictures import normalise
from model.spec.nfnet import NfNet
from model.weights import Weights, load_published, rename

ALPHA = 0.2
"""Scale of residual branches; the variance grows by its square from block to block."""
GELU_GAIN = 1.7015043497085571
"""Gain that preserves the variance of a standard normal variable under GELU."""
EXCITE_GAIN = 2.0
"""Gain of squeeze-and-excitation, whose gates are 0.5 on average."""
EPSILON = 1e-5

# The order matters: no replacement may create a substring that a later pair replaces.
OWN_NAMES = (
    *((f"stem.conv{number}.", f"stem.{number - 1}.") for number in (1, 2, 3, 4)),
    ("conv1.", "enter."),
    ("conv2.", "conv1."),
    ("conv2b.", "conv2."),
    ("conv3.", "leave."),
    ("downsample.conv.", "shortcut."),
    ("attn_last.", "excite."),
    ("skipinit_gain", "skip_gain"),
)
"""Substrings of timm's names → ours."""


class ScaledConv(nn.Conv2d):
    """A convolution with standardised weights and a gain per output channel, padded "SAME".

    W' = g (W - mean) / (std sqrt(fan-in)), per output channel (arXiv:2101.08692).
    """

    def __init__(
        self, width_in: int, width_out: int, side: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(width_in, width_out, side, stride=stride, groups=groups)
        self.gain = nn.Parameter(torch.ones(width_out, 1, 1, 1))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, maps_bchw: Tensor) -> Tensor:
        """Return maps (b, c', h / stride, w / stride), sizes rounded up."""
        weight = self.weight.float()
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = self.gain * (variance + EPSILON).rsqrt() * weight[0].numel() ** -0.5
        weight = ((weight - mean) * scale).to(maps_bchw.dtype)
        padded = F.pad(maps_bchw, [*self._padding(maps_bchw, 3), *self._padding(maps_bchw, 2)])
        return F.conv2d(padded, weight, self.bias, self.stride, groups=self.groups)

    def _padding(self, maps_bchw: Tensor, dim: int) -> tuple[int, int]:
        """Return the padding before and after; an odd zero comes after, as in TensorFlow."""
        size, stride, side = maps_bchw.shape[dim], self.stride[0], self.kernel_size[0]
        total = max((-(-size // stride) - 1) * stride + side - size, 0)
        return total // 2, total - total // 2


class SqueezeExcite(nn.Module):
    """Scale channels by gates computed from their means (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // 2, 1)
        self.fc2 = nn.Conv2d(width // 2, width, 1)

    def forward(self, maps_bchw: Tensor) -> Tensor:
        """Return gated maps of the same shape."""
        means_bc11 = maps_bchw.mean(dim=(2, 3), keepdim=True)
        return maps_bchw * self.fc2(F.relu(self.fc1(means_bc11))).sigmoid()


class NfBlock(nn.Module):
    """x + alpha f(x / beta): a bottleneck with two grouped 3 x 3 convolutions.

    Args:
        width_in, width_out: channels; the bottleneck has half of `width_out`.
        stride: 2 halves the map.
        group_width: channels of a group.
        deviation: analytic standard deviation of the input, by which the block divides it.
    """

    def __init__(
        self, width_in: int, width_out: int, *, stride: int, group_width: int, deviation: float
    ) -> None:
        super().__init__()
        middle = width_out // 2
        groups = middle // group_width
        self.deviation = deviation
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        changes = stride == 2 or width_in != width_out
        self.shortcut = ScaledConv(width_in, width_out, 1) if changes else None
        self.enter = ScaledConv(width_in, middle, 1)
        self.conv1 = ScaledConv(middle, middle, 3, stride=stride, groups=groups)
        self.conv2 = ScaledConv(middle, middle, 3, groups=groups)
        self.leave = ScaledConv(middle, width_out, 1)
        self.excite = SqueezeExcite(width_out)
        # Not a scalar: ZeRO-3 cannot partition tensors without dimensions.
        self.skip_gain = nn.Parameter(torch.zeros(1))

    def forward(self, maps_bchw: Tensor) -> Tensor:
        """Return maps (b, width_out, h / stride, w / stride)."""
        active_bchw = activate(maps_bchw) / self.deviation
        if self.shortcut is not None:
            maps_bchw = self.shortcut(self.pool(active_bchw))
        branch_bchw = self.conv1(activate(self.enter(active_bchw)))
        branch_bchw = self.leave(activate(self.conv2(activate(branch_bchw))))
        branch_bchw = EXCITE_GAIN * self.excite(branch_bchw)
        return maps_bchw + ALPHA * self.skip_gain * branch_bchw


class NfNetEncoder(nn.Module):
    """Pictures to the cells of the last feature map, row by row."""

    def __init__(self, spec: NfNet) -> None:
        super().__init__()
        self.spec = spec
        stem = (3, *(spec.stem_width // share for share in (8, 4, 2, 1)))
        self.stem = nn.ModuleList(
            ScaledConv(stem[number], stem[number + 1], 3, stride=stride)
            for number, stride in enumerate((2, 1, 1, 2))
        )
        self.stages = nn.ModuleList()
        width, variance = spec.stem_width, 1.0
        for stage, (depth, width_out) in enumerate(zip(spec.depths, spec.widths, strict=True)):
            blocks = nn.Sequential()
            for number in range(depth):
                blocks.append(
                    NfBlock(
                        width,
                        width_out,
                        stride=2 if stage and not number else 1,
                        group_width=spec.group_width,
                        deviation=variance**0.5,
                    )
                )
                # The first block of a stage also normalises its shortcut.
                variance = (1.0 if number == 0 else variance) + ALPHA**2
                width = width_out
            self.stages.append(blocks)
        self.final_conv = ScaledConv(width, spec.width, 1)

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        """Return features (b, n, d) of pictures (b, 3, h, w), uint8 or normalised."""
        pixels_b3hw = normalise(pixels_b3hw, self.spec.processor)
        maps_bchw = pixels_b3hw.to(next(self.parameters()).dtype)
        for number, conv in enumerate(self.stem):
            maps_bchw = conv(activate(maps_bchw) if number else maps_bchw)
        for stage in self.stages:
            maps_bchw = stage(maps_bchw)
        return activate(self.final_conv(maps_bchw)).flatten(2).transpose(1, 2)


def activate(maps_bchw: Tensor) -> Tensor:
    """Return GELU with its gain."""
    return F.gelu(maps_bchw) * GELU_GAIN


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a timm checkpoint to ours, without the classification head."""
    return {
        rename(name, OWN_NAMES): tensor.reshape(1) if tensor.dim() == 0 else tensor
        for name, tensor in state.items()
        if not name.startswith("head.")
    }


def build(spec: NfNet, *, weights: Weights, dtype: torch.dtype) -> NfNetEncoder:
    """Return the encoder with published or random weights."""
    encoder = NfNetEncoder(spec).to(dtype)
    if weights == "pretrained":
        load_published(encoder, spec.weights, convert_state_dict)
    return encoder


def preprocess(spec: NfNet, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, side, side), uint8, of an RGB picture."""
    return pictures.preprocess(spec.processor, picture)
