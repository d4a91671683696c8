"""Blurs faces by published boxes.

Boxes are `[x0, y0, x1, y1]` as fractions of the image's width and height, as in DataComp's
`face_bboxes` (Gadre et al., arXiv:2304.14108, who blur them all). They are blurred as in ImageNet
(Yang et al., arXiv:2103.06191): a box grows by a tenth of its diagonal on every side and is blurred
by a Gaussian of that width, with a soft edge. Here each box has its own width, so the surroundings
of a small face stay sharp next to a large one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa
from PIL import Image, ImageFilter

from etl.filters.base import FilterResult

Box = Sequence[float]

BOXES = pa.list_(pa.list_(pa.float64()))
_MARGIN = 0.1  # of the box's diagonal
_REACH = 4  # standard deviations beyond which a Gaussian is negligible

_ROTATIONS = {
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (1 - y, x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (y, 1 - x),
}
"""EXIF orientation → from a point of the stored image to where it is shown."""


def valid_boxes(table: pa.Table) -> FilterResult:
    """Drop rows whose boxes are missing or invalid: their faces would not be blurred.

    Args:
        table: needs `boxes` (see `BOXES`; an empty list means that there are no faces).
    """
    reasons: list[str | None] = []
    for boxes in table["boxes"].to_pylist():
        if boxes is None:
            reasons.append("no_boxes")
        else:
            reasons.append(None if all(map(_is_valid, boxes)) else "bad_boxes")
    return FilterResult(reasons=reasons)


def _is_valid(box: Sequence[float | None] | None) -> bool:
    if box is None or len(box) != 4:
        return False
    numbers = [value for value in box if value is not None and math.isfinite(value)]
    if len(numbers) != 4:
        return False
    x0, y0, x1, y1 = numbers
    return x0 <= x1 and y0 <= y1 and max(numbers) <= 2 and min(numbers) >= -1


def rotate_boxes(boxes: Sequence[Box], orientation: int | None) -> list[Box]:
    """Map boxes of the stored image to the image as it is shown.

    The detectors were run on img2dataset's files, which ignore EXIF orientation.
    """
    rotate = _ROTATIONS.get(orientation or 1)
    if rotate is None:
        return list(boxes)
    found: list[Box] = []
    for x0, y0, x1, y1 in boxes:
        (ax, ay), (bx, by) = rotate(x0, y0), rotate(x1, y1)
        found.append((min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)))
    return found


def blur(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of an RGB or grey image with the boxes blurred."""
    result = image.copy()
    width, height = image.size
    for x0, y0, x1, y1 in boxes:
        sides = ((x1 - x0) * width, (y1 - y0) * height)
        sigma = max(1.0, _MARGIN * math.hypot(*sides))
        face = (
            max(0, math.floor(x0 * width - sigma)),
            max(0, math.floor(y0 * height - sigma)),
            min(width, math.ceil(x1 * width + sigma)),
            min(height, math.ceil(y1 * height + sigma)),
        )
        if face[0] >= face[2] or face[1] >= face[3]:
            continue  # outside the image
        reach = math.ceil(_REACH * sigma)
        region = (
            max(0, face[0] - reach),
            max(0, face[1] - reach),
            min(width, face[2] + reach),
            min(height, face[3] + reach),
        )
        left, top = region[:2]
        mask = Image.new("L", (region[2] - left, region[3] - top))
        mask.paste(255, (face[0] - left, face[1] - top, face[2] - left, face[3] - top))
        gaussian = ImageFilter.GaussianBlur(sigma)
        # Without the margin, the mask's soft edge would leave the rim of the face unblurred.
        result.paste(result.crop(region).filter(gaussian), (left, top), mask.filter(gaussian))
    return result
