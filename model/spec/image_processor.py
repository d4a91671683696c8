"""How a picture becomes pixels: crop, pad, resize, resample, rescale and normalise, as data.

Terms and order of the steps are those of transformers' image processors, whose configuration files
are read and written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from model.spec.base import SpecError, choose

Colour = tuple[float, float, float]
"""Red, green and blue."""
Size = tuple[int, int]
"""Height and width, in pixels."""
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Pillow's filters, in the order of their numbers."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the pixel values that OpenAI's CLIP and its successors use."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation that map pixel values to [-1, 1]."""

RESCALE = 1 / 255
"""Factor that maps bytes to [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """The steps from an RGB picture to pixels, in the order of the fields below.

    Args:
        pad: whether the picture is first padded to a square, and with which colour: `mean`
            (LLaVA-1.5) or `white` (Shikra).
        shortest_edge: length to which the shorter edge is then resized, keeping the aspect ratio.
        stretch: height and width to which the picture is resized instead, whatever its aspect
            ratio. Without either it is stretched to `size`.
        resample: the filter.
        size: height and width of the result; what is larger is cropped to its centre, what is
            smaller is padded with black.
        rescale: factor on the bytes.
        mean, std: of the rescaled red, green and blue values.
    """

    pad: Literal["none", "mean", "white"] = "none"
    shortest_edge: int | None = None
    stretch: Size | None = None
    resample: Resample = "bicubic"
    size: Size
    rescale: float = RESCALE
    mean: Colour = CLIP_MEAN
    std: Colour = CLIP_STD

    def __post_init__(self) -> None:
        """Raise SpecError for sizes that are not positive, or for two rules of resizing."""
        if self.shortest_edge is not None and self.stretch is not None:
            raise SpecError("processor: has both shortest_edge and stretch; want at most one")
        lengths = (*self.size, *(self.stretch or ()), self.shortest_edge or 1)
        if min(lengths) < 1 or self.shortest_edge == 0:
            raise SpecError(f"processor: the sizes {lengths} must be positive")
        if min(self.std) <= 0:
            raise SpecError(f"processor.std: {self.std}, must be positive")

    @property
    def side(self) -> int:
        """Side of the square result; raises SpecError if it is not square."""
        height, width = self.size
        if height != width:
            raise SpecError(f"processor.size: {height} x {width} pixels, must be a square")
        return height

    @property
    def squashes(self) -> bool:
        """Whether the whole picture is stretched to the result's size."""
        return (
            self.pad == "none" and self.shortest_edge is None and self.stretch in (None, self.size)
        )

    def at(self, side: int) -> ImageProcessor:
        """Return the same processor for squares of another side; what is cropped is in proportion.

        A shorter edge equal to the old side becomes the new one.
        """
        height, width = self.size
        edge, stretch = self.shortest_edge, self.stretch
        return replace(
            self,
            size=(side, side),
            shortest_edge=None if edge is None else edge * side // min(height, width),
            stretch=None
            if stretch is None
            else (stretch[0] * side // height, stretch[1] * side // width),
        )

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], default: str = "CLIPImageProcessor"
    ) -> ImageProcessor:
        """Read a published `preprocessor_config.json` or `processor_config.json`.

        Args:
            config: the parsed file; values that it lacks are those of its class in transformers.
            default: the class, where the file names none.

        Raises:
            SpecError: a class or a rule that cannot be expressed; one line names it.
        """
        config = config.get("image_processor", config)
        name = next((config[key] for key in _CLASS_KEYS if config.get(key)), default)
        name = name.removesuffix("Fast").removesuffix("Pil")
        for suffix in ("FeatureExtractor", "VideoProcessor"):
            name = name.removesuffix(suffix) + "ImageProcessor" if name.endswith(suffix) else name
        name = choose(name, tuple(_CLASSES), "image processor class")
        if name == "Siglip2ImageProcessor":
            return _siglip2(config)
        values = _CLASSES[name] | {key: value for key, value in config.items() if value is not None}
        _refuse_other_rules(values)
        normalizes = values.get("do_normalize", True)
        return cls(
            **_sizes(name, values),
            resample=get_args(Resample)[int(values["resample"])],
            rescale=float(values.get("rescale_factor", RESCALE))
            if values.get("do_rescale", True)
            else 1.0,
            mean=_colour(values["image_mean"] if normalizes else 0.0),
            std=_colour(values["image_std"] if normalizes else 1.0),
        )

    def to_config(self) -> dict[str, Any]:
        """Return the class and values of transformers that give the same pixels.

        Raises:
            SpecError: no class pads with that colour.
        """
        if self.pad == "white":
            raise SpecError("processor.pad: no class of transformers pads with white")
        pads = self.pad == "mean"
        height, width = self.size
        resized = self.stretch or self.size
        return {
            "image_processor_type": "LlavaImageProcessor" if pads else "CLIPImageProcessor",
            **({"do_pad": True} if pads else {}),
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": resized[0], "width": resized[1]}
            if self.shortest_edge is None
            else {"shortest_edge": self.shortest_edge},
            "resample": get_args(Resample).index(self.resample),
            "do_center_crop": self.shortest_edge is not None or resized != self.size,
            "crop_size": {"height": height, "width": width},
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def squash(side: int, *, mean: Colour = CLIP_MEAN, std: Colour = CLIP_STD) -> ImageProcessor:
    """Return the processor that stretches pictures to a square, bicubically (BLIP, SigLIP)."""
    return ImageProcessor(size=(side, side), mean=mean, std=std)


def pad_to_square(side: int, *, mean: Colour = CLIP_MEAN, std: Colour = CLIP_STD) -> ImageProcessor:
    """Return the processor that pads pictures to a square with the mean colour (LLaVA-1.5)."""
    return replace(squash(side, mean=mean, std=std), pad="mean")


def center_crop(side: int, *, mean: Colour = CLIP_MEAN, std: Colour = CLIP_STD) -> ImageProcessor:
    """Return the processor that crops pictures to their central square, bicubically (CLIP)."""
    return replace(squash(side, mean=mean, std=std), shortest_edge=side)


def _sizes(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields `pad`, `shortest_edge`, `stretch` and `size` of a configuration."""
    size, pads = values["size"], name == "LlavaImageProcessor" and values.get("do_pad")
    pad = "mean" if pads else "none"
    if isinstance(size, int) and not values.get("default_to_square", True):
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and not {"height", "width"} <= size.keys():
        edge = size.get("shortest_edge")
        if edge is None or size.get("longest_edge") is not None:
            raise SpecError(
                f"image processor: size {dict(size)} gives pictures of many sizes; want "
                "shortest_edge with a crop, or height and width"
            )
        if name == "ConvNextImageProcessor":
            stretched = edge >= CONVNEXT_CROP_BELOW
            longer = None if stretched else int(edge / values["crop_pct"])
            return {"size": (edge, edge), "shortest_edge": longer}
        if not values.get("do_center_crop"):
            raise SpecError(
                f"image processor: size {dict(size)} without do_center_crop gives pictures of many "
                "sizes; want a crop, or height and width"
            )
        cropped = _height_and_width(values["crop_size"])
        # A padded picture is a square, of which nothing is cropped if the edges agree.
        whole = pads and cropped == (edge, edge)
        return {"size": cropped, "shortest_edge": None if whole else edge, "pad": pad}
    resized = _height_and_width(size)
    cropped = _height_and_width(values["crop_size"]) if values.get("do_center_crop") else resized
    return {"size": cropped, "stretch": None if cropped == resized else resized, "pad": pad}


def _siglip2(config: Mapping[str, Any]) -> ImageProcessor:
    """Return the processor of SigLIP 2's models for native resolutions, for squares of patches.

    As published, it keeps the aspect ratio, with the number of patches as an upper limit.
    """
    side = config.get("patch_size", 16) * math.isqrt(config.get("max_num_patches", 256))
    processor = squash(side, mean=HALF, std=HALF)
    return replace(processor, resample="bilinear")


def _height_and_width(size: Any) -> Size:  # noqa: ANN401 -- JSON
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
        return int(size["height"]), int(size["width"])
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _colour(value: Any) -> Colour:  # noqa: ANN401 -- JSON
    red, green, blue = value if isinstance(value, list | tuple) else (value,) * 3
    return float(red), float(green), float(blue)


def _refuse_other_rules(values: Mapping[str, Any]) -> None:
    """Raise SpecError where a configuration has a rule that no field expresses."""
    if not values.get("do_resize", True):
        raise SpecError("image processor: do_resize false gives pictures of many sizes")
    for key in _OTHER_RULES:
        if values.get(key):
            raise SpecError(f"image processor: {key} {values[key]!r} is not supported")


CONVNEXT_CROP_BELOW = 384
"""Shorter edges from which on transformers' ConvNeXT stretches instead of cropping, in pixels."""

_OTHER_RULES = (
    "crop_to_patches",
    "do_flip_channel_order",
    "do_image_splitting",
    "image_grid_pinpoints",
    "max_num_patches",
    "pad_size",
    "rescale_offset",
    "size_divisor",
)
"""Rules of tiles, of a variable number of patches, and of colours: a medium has a fixed number of
tokens here."""


def _class(size: int, mean: Colour, std: Colour) -> dict[str, Any]:
    return {"size": size, "resample": 3, "image_mean": mean, "image_std": std}


_CLASS_KEYS = ("image_processor_type", "video_processor_type", "feature_extractor_type")
_CROP = {"do_center_crop": True, "crop_size": 224}
_CLIP = _class(224, CLIP_MEAN, CLIP_STD) | _CROP | {"default_to_square": False}
_BLIP = _class(384, CLIP_MEAN, CLIP_STD)
_HALF = _class(224, HALF, HALF)
_CLASSES: Mapping[str, dict[str, Any]] = {
    "BeitImageProcessor": _HALF,
    "BitImageProcessor": _CLIP,
    "BlipImageProcessor": _BLIP,
    "CLIPImageProcessor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "ConvNextImageProcessor": _class(384, HALF, HALF)
    | {"default_to_square": False, "crop_pct": 224 / 256},
    "DINOv3ViTImageProcessor": _class(224, IMAGENET_MEAN, IMAGENET_STD) | {"resample": 2},
    "DeiTImageProcessor": _class(256, HALF, HALF) | _CROP,
    "InstructBlipVideoImageProcessor": _BLIP,
    "LlavaImageProcessor": _CLIP,
    "PvtImageProcessor": _class(224, IMAGENET_MEAN, IMAGENET_STD),
    "Siglip2ImageProcessor": {},
    "SiglipImageProcessor": _HALF,
    "ViTImageProcessor": _HALF | {"resample": 2},
    "VideoLlavaImageProcessor": _CLIP,
}
"""Transformers' classes whose steps are those above, with the values that their files may omit."""
