"""Blurring faces by published boxes.

Boxes are `[x0, y0, x1, y1]` in parts of the picture's width and height, as DataComp's `face_bboxes`
has them (Gadre et al., arXiv:2304.14108, who blur them all). They are blurred as ImageNet's faces
were (Yang et al., arXiv:2103.06191): a box grows by a tenth of its diagonal on every side and is
blurred by a Gaussian of that width, with a soft edge. Here each box has its own width, so that a
small face beside a large one keeps its surroundings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa
from PIL import Image, ImageFilter

from etl.filters.base import Verdict

Box = Sequence[float]

BOXES = pa.list_(pa.list_(pa.float64()))
_SHARE = 0.1
_REACH = 4  # standard deviations, behind which a Gaussian is nothing

_TURNS = {
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (1 - y, x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (y, 1 - x),
}
"""EXIF orientation → where a point of the stored picture is shown."""


def sound_boxes(table: pa.Table) -> Verdict:
    """Drop rows whose boxes are not published or make no sense: their faces would stay.

    Args:
        table: needs `boxes` (see `BOXES`; an empty list says that there are no faces).
    """
    reasons: list[str | None] = []
    for boxes in table["boxes"].to_pylist():
        if boxes is None:
            reasons.append("no_boxes")
        else:
            reasons.append(None if all(map(_is_sound, boxes)) else "bad_boxes")
    return Verdict(reasons=reasons)


def _is_sound(box: Sequence[float | None] | None) -> bool:
    if box is None or len(box) != 4:
        return False
    numbers = [one for one in box if one is not None and math.isfinite(one)]
    if len(numbers) != 4:
        return False
    x0, y0, x1, y1 = numbers
    return x0 <= x1 and y0 <= y1 and max(numbers) <= 2 and min(numbers) >= -1


def turned_boxes(boxes: Sequence[Box], orientation: int | None) -> list[Box]:
    """Boxes of a stored picture as they lie in the picture that is shown.

    Detectors were run on what img2dataset wrote, which ignores EXIF orientation.
    """
    turn = _TURNS.get(orientation or 1)
    if turn is None:
        return list(boxes)
    found: list[Box] = []
    for x0, y0, x1, y1 in boxes:
        (ax, ay), (bx, by) = turn(x0, y0), turn(x1, y1)
        found.append((min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)))
    return found


def blur(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of an RGB or grey picture in which the boxes are blurred."""
    result = picture.copy()
    width, height = picture.size
    for x0, y0, x1, y1 in boxes:
        sides = ((x1 - x0) * width, (y1 - y0) * height)
        sigma = max(1.0, _SHARE * math.hypot(*sides))
        face = (
            max(0, math.floor(x0 * width - sigma)),
            max(0, math.floor(y0 * height - sigma)),
            min(width, math.ceil(x1 * width + sigma)),
            min(height, math.ceil(y1 * height + sigma)),
        )
        if face[0] >= face[2] or face[1] >= face[3]:
            continue  # it lies outside
        reach = math.ceil(_REACH * sigma)
        about = (
            max(0, face[0] - reach),
            max(0, face[1] - reach),
            min(width, face[2] + reach),
            min(height, face[3] + reach),
        )
        left, top = about[:2]
        mask = Image.new("L", (about[2] - left, about[3] - top))
        mask.paste(255, (face[0] - left, face[1] - top, face[2] - left, face[3] - top))
        gaussian = ImageFilter.GaussianBlur(sigma)
        # Half of the mask's edge would show the face's rim unblurred, were it not for the margin.
        result.paste(result.crop(about).filter(gaussian), (left, top), mask.filter(gaussian))
    return result
