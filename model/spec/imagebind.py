"""Spec of ImageBind, one embedding space for six modalities (survey §2.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal

Trunk = Literal["image", "audio", "depth", "thermal", "imu"]
Output = Literal["embedding", "tokens"]

TINY_SHAPES: dict[Trunk, tuple[int, ...]] = {
    "image": (3, 2, 28, 28),
    "audio": (1, 128, 56),
    "depth": (1, 32, 32),
    "thermal": (1, 32, 32),
    "imu": (6, 64),
}
TINY_SECONDS = 0.56


@dataclass(frozen=True, kw_only=True)
class ImageBind:
    """One trunk of ImageBind (Girdhar et al. 2023, arXiv:2305.05665); `imagebind` gives its sizes.

    Args:
        weights: `FOLDER/FILE` or `OWNER/NAME:FILE` of the published checkpoint.
        trunk: which of its encoders; `image` also encodes videos, as pairs of frames.
        clips: that a sound is split into, `seconds` each, evenly spread from its start to its end.
        seconds: duration of a clip.
        shape: of one segment: colour channels, frames and pixels; or 1, mel bins and frames; or
            channels and steps of a motion sensor.
        kernel, stride: of the patches, over all but the first dimension of `shape`.
        hidden_width, layers, heads: of the transformer.
        embedding_width: of the space that the modalities share.
        normalise: whether the output is scaled to unit length before `scale` is applied (not in
            CoDi-2, for images).
        scale: factor on the output. In the published model 1 for images, 20 for audio, 5 for depth,
            10 for thermal images and 5 for motion (PandaGPT: 1 for audio).
        output: `embedding` returns one projected token; `tokens` all tokens of the trunk without
            projection (BuboGPT's audio).
    """

    kind: Literal["imagebind"] = "imagebind"
    weights: str
    trunk: Trunk
    clips: int = 1
    seconds: float = 2.0
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    hidden_width: int
    layers: int
    heads: int
    embedding_width: int = 1024
    normalise: bool = True
    scale: float
    output: Output = "embedding"

    encodes_jointly: ClassVar[bool] = False
    sample_rate: ClassVar[int] = 16_000

    @property
    def media(self) -> tuple[str, ...]:
        """The modalities that it can encode."""
        return ("image", "video") if self.trunk == "image" else (self.trunk,)

    @property
    def segments(self) -> int:
        """The clips of a sound; 1 for all other media."""
        return self.clips

    @property
    def patches(self) -> int:
        """Patches of one segment."""
        sizes = zip(self.shape[1:], self.kernel, self.stride, strict=True)
        return prod((size - kernel) // stride + 1 for size, kernel, stride in sizes)

    @property
    def tokens(self) -> int:
        """Tokens per segment that the projector receives."""
        return 1 + self.patches if self.output == "tokens" else 1

    @property
    def width(self) -> int:
        """Width of a token that the projector receives."""
        return self.hidden_width if self.output == "tokens" else self.embedding_width

    def tiny(self) -> ImageBind:
        """Return the same trunk with small sizes."""
        return replace(
            self,
            clips=min(self.clips, 2),
            seconds=TINY_SECONDS,
            shape=TINY_SHAPES[self.trunk],
            hidden_width=32,
            layers=2,
            heads=2,
            embedding_width=32,
        )


def imagebind(
    trunk: Trunk,
    *,
    weights: str,
    clips: int = 1,
    normalise: bool = True,
    scale: float | None = None,
    output: Output = "embedding",
) -> ImageBind:
    """Return a trunk of `imagebind_huge` (paper, §3.3 and appendix B).

    Args:
        trunk: image ViT-H/14, audio ViT-B/16 with stride 10, depth ViT-S/16, thermal ViT-B/16, or a
            motion sensor's six-layer transformer.
        weights: see `ImageBind`.
        clips: of a sound: 3 in ImageBind and PandaGPT, 8 in Video-LLaMA.
        normalise: see `ImageBind`.
        scale: factor on the output; None for the published one.
        output: see `ImageBind`.
    """
    square = (1, 224, 224)
    shape, kernel, stride, (width, layers, heads), published_scale = {
        "image": ((3, 2, 224, 224), (2, 14, 14), (2, 14, 14), (1280, 32, 16), 1.0),
        "audio": ((1, 128, 204), (16, 16), (10, 10), (768, 12, 12), 20.0),
        "depth": (square, (16, 16), (16, 16), (384, 12, 8), 5.0),
        "thermal": (square, (16, 16), (16, 16), (768, 12, 12), 10.0),
        "imu": ((6, 2000), (8,), (8,), (512, 6, 8), 5.0),
    }[trunk]
    return ImageBind(
        weights=weights,
        trunk=trunk,
        clips=clips,
        shape=shape,
        kernel=kernel,
        stride=stride,
        hidden_width=width,
        layers=layers,
        heads=heads,
        normalise=normalise,
        scale=published_scale if scale is None else scale,
        output=output,
    )
