import math

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from etl.media.faces import BOXES, blur, rotate_boxes, valid_boxes

NOISE = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)


def changed(boxes: list) -> np.ndarray:
    after = np.asarray(blur(Image.fromarray(NOISE), boxes), int)
    return np.abs(after - NOISE).max(axis=2) > 0


def test_only_the_box_is_blurred() -> None:
    found = changed([(0.4, 0.4, 0.6, 0.7)])
    assert found[80:140, 120:180].mean() > 0.95
    assert not found[:40].any()
    assert not found[:, :80].any()


def test_the_blur_is_as_wide_as_the_box() -> None:
    """A Gaussian of width σ reduces the deviation of noise to about 1 / (2 σ √π) of it."""
    for side in (0.2, 0.6):
        low, high = 0.5 - side / 2, 0.5 + side / 2
        result = np.asarray(blur(Image.fromarray(NOISE), [(low, low, high, high)]), float)
        sigma = 0.1 * math.hypot(side * 300, side * 200)
        middle = result[90:110, 135:165, 0]
        assert middle.std() < 3 * NOISE.std() / (2 * sigma * math.sqrt(math.pi))


@pytest.mark.parametrize(
    "box", [(-0.1, -0.1, 0.1, 0.1), (0.9, 0.9, 1.2, 1.2), (0, 0, 1, 1), (0.5, 0.5, 0.5, 0.5)]
)
def test_boxes_may_extend_beyond_the_edge(box: tuple) -> None:
    assert changed([box]).any()


def test_boxes_outside_do_nothing() -> None:
    assert not changed([(1.5, 1.5, 1.6, 1.6)]).any()
    assert not changed([]).any()


def test_grey_images_stay_grey() -> None:
    assert blur(Image.fromarray(NOISE[:, :, 0]), [(0.1, 0.1, 0.9, 0.9)]).mode == "L"


def test_boxes_are_rotated_with_their_image() -> None:
    box = (0.1, 0.2, 0.3, 0.6)
    assert rotate_boxes([box], None) == rotate_boxes([box], 1) == [box]
    assert rotate_boxes([box], 6) == [pytest.approx((0.4, 0.1, 0.8, 0.3))]
    assert rotate_boxes(rotate_boxes([box], 6), 8) == [pytest.approx(box)]


def test_rows_with_missing_or_invalid_boxes_are_dropped() -> None:
    boxes = [
        [],
        [[0.1, 0.1, 0.2, 0.2]],
        None,
        [[0.1, 0.1, 0.2]],
        [[0.1, 0.1, None, 0.2]],
        [[0.1, 0.1, math.nan, 0.2]],
        [[0.3, 0.1, 0.2, 0.2]],
        [[10, 10, 200, 200]],
        [None],
    ]
    found = valid_boxes(pa.table({"boxes": pa.array(boxes, BOXES)})).reasons
    assert found == [None, None, "no_boxes", *["bad_boxes"] * 6]
