"""Pictures to pixels: the preprocessing that all picture encoders share.

Pixels stay bytes until the encoder normalises them on its device: they need a quarter of the memory
and transfer time of floats, and no computation in the workers.

Shapes: hw height and width in pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.spec.image_processor import RESCALE, ImageProcessor

MAX_PIXELS = 1 << 26
"""Intermediate pictures of more pixels are never whole in memory (256 MB at four bytes each)."""
RESAMPLE_SUPPORT = 4
"""More than the radius of any filter (Lanczos: 3), in pixels of the smaller picture."""
BAND_PIXELS = 1 << 24
"""Pixels of a padded picture that are in memory at once."""


def resized(picture: Image.Image, processor: ImageProcessor) -> Image.Image:
    """Return the picture with the size and content that a processor gives it.

    Args:
        picture: an RGB picture of any size.
        processor: its normalisation is not applied.

    Raises:
        ValueError: a picture too long to be padded to a square.
    """
    height, width = processor.stretch or processor.size
    resample = Image.Resampling[processor.resample.upper()]
    if processor.pad != "none" and picture.width != picture.height:
        edge = processor.shortest_edge
        picture = _padded(picture, width if edge is None else edge, resample, processor)
        width, height = (width, height) if edge is None else (edge, edge)
    elif processor.shortest_edge is not None:
        width, height = _scaled(picture.size, processor.shortest_edge)
    if width * height > MAX_PIXELS:
        return _resized_centre(picture, (width, height), resample, processor)
    return _cropped(picture.resize((width, height), resample), processor)


def _padded(
    picture: Image.Image, width: int, resample: Image.Resampling, processor: ImageProcessor
) -> Image.Image:
    """Return the picture padded to a square, or that square with its rows resized to a width.

    Pillow resizes rows first, then columns, so a wide picture need not be padded before its rows
    are resized, and a very tall one not at once.
    """
    longer = max(picture.size)
    if width * longer > MAX_PIXELS:
        raise ValueError(
            f"a picture of {picture.width} x {picture.height} pixels is too long to be padded"
        )
    # Colour and offset are rounded down, as in LLaVA's training.
    mean = tuple(int(255 * value) for value in processor.mean)
    colour = mean if processor.pad == "mean" else (255, 255, 255)
    left = (longer - picture.width) // 2
    if left > 0 and longer**2 <= BAND_PIXELS:
        square = Image.new("RGB", (longer, longer), colour)
        square.paste(picture, (left, 0))
        return square
    padded = Image.new("RGB", (width, longer), colour)
    if picture.width == longer:
        rows = picture.resize((width, picture.height), resample)
        padded.paste(rows, (0, (longer - picture.height) // 2))
        return padded
    step = max(1, BAND_PIXELS // longer)
    for top in range(0, longer, step):
        band = picture.crop((0, top, picture.width, min(top + step, longer)))
        wide = Image.new("RGB", (longer, band.height), colour)
        wide.paste(band, (left, 0))
        padded.paste(wide.resize((width, band.height), resample), (0, top))
    return padded


def _scaled(size: tuple[int, int], shortest_edge: int) -> tuple[int, int]:
    """Return width and height with that shorter edge; the longer one is rounded down."""
    width, height = size
    longer = int(shortest_edge * max(size) / min(size))
    return (shortest_edge, longer) if width <= height else (longer, shortest_edge)


def _cropped(picture: Image.Image, processor: ImageProcessor) -> Image.Image:
    """Return the centre of a picture, or a smaller picture in the middle of black."""
    height, width = processor.size
    if picture.size == (width, height):
        return picture
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _resized_centre(
    picture: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    processor: ImageProcessor,
) -> Image.Image:
    """Resize only what is kept of a very long picture: the same pixels to within rounding."""
    height, width = processor.size
    kept = min(width, size[0]), min(height, size[1])
    region, boxes = [], []
    for whole, part, pixels in zip(size, kept, picture.size, strict=True):
        scale, start = pixels / whole, (whole - part) // 2
        margin = RESAMPLE_SUPPORT * max(scale, 1)
        low = max(0, math.floor(start * scale - margin))
        high = min(pixels, math.ceil((start + part) * scale + margin))
        region.append((low, high))
        boxes.append((start * scale - low, min((start + part) * scale, high) - low))
    (left, right), (top, bottom) = region
    used = picture.crop((left, top, right, bottom))
    (left_edge, right_edge), (top_edge, bottom_edge) = boxes
    # In two steps: in one, Pillow's rows would differ from those of the whole picture.
    box = left_edge, 0, right_edge, used.height
    rows = used.resize((kept[0], used.height), resample, box)
    return _cropped(rows.resize(kept, resample, (0, top_edge, kept[0], bottom_edge)), processor)


def to_pixels(picture: Image.Image) -> Tensor:
    """Return the pixels (3, h, w), uint8, of an RGB picture."""
    pixels_3hw = np.stack([np.asarray(channel) for channel in picture.split()])
    return torch.from_numpy(pixels_3hw)


def preprocess(processor: ImageProcessor, picture: Image.Image) -> Tensor:
    """Return the pixels (1, 3, h, w), uint8, that a processor makes of an RGB picture."""
    return to_pixels(resized(picture, processor))[None]


def normalise(pixels: Tensor, processor: ImageProcessor) -> Tensor:
    """Return normalised pixels (…, 3, h, w), float32; floats are already normalised and returned.

    Args:
        pixels: (…, 3, h, w), uint8 as returned by `preprocess`.
        processor: whose rescaling, mean and standard deviation are applied.
    """
    if pixels.is_floating_point():
        return pixels
    values = pixels.to(torch.float32)
    values = values.div_(255) if processor.rescale == RESCALE else values.mul_(processor.rescale)
    for channel, (mean, std) in enumerate(zip(processor.mean, processor.std, strict=True)):
        values[..., channel, :, :].sub_(mean).div_(std)
    return values
