"""How close shrunk images are to those of a better and slower filter."""

import io

import numpy as np
import pytest
from PIL import Image

from etl.media.resize import decode_jpeg, shrink
from tests.etl.download.web import photo


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.46, 1.9, 2.0, 3.7, 8.3])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_shrinking_is_close_to_a_lanczos_filter(factor: float, mode: str) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
    image = noise.resize((800, 600), Image.Resampling.BICUBIC).convert(mode)
    size = (round(800 / factor), round(600 / factor))
    found = Image.fromarray(shrink(np.asarray(image), size))
    assert (found.size, found.mode) == (size, mode)
    best = image.resize(size, Image.Resampling.LANCZOS)
    plain = image.resize(size, Image.Resampling.HAMMING)
    assert difference(found, best) < max(0.5, 1.3 * difference(plain, best))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_is_decoded_at_the_requested_size_or_more(mode: str) -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(photo(800, 600))).convert(mode).save(stream, "JPEG")
    for size, expected in (((500, 375), (600, 800)), ((200, 150), (150, 200))):
        with Image.open(io.BytesIO(stream.getvalue())) as image:
            assert decode_jpeg(stream.getvalue(), image, size).shape[:2] == expected


def test_truncated_jpegs_raise_pillows_error() -> None:
    data = photo(800, 600)[:-400]
    with Image.open(io.BytesIO(data)) as image, pytest.raises(OSError, match="truncated"):
        decode_jpeg(data, image, (300, 225))
