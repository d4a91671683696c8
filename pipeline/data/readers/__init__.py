"""Encoded media to what an encoder's `preprocess` takes (docs/components.md).

Media come from the web: every reader bounds what it decodes, opens nothing but the bytes it is
given, and answers what it cannot read with OSError or ValueError, in one line.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from etl.storage.schema import Medium
from model.spec import InputBranchSpec
from pipeline.data.readers.audio import read_audio
from pipeline.data.readers.image import read_image
from pipeline.data.readers.points import read_points
from pipeline.data.readers.video import read_video

Raw = Image.Image | list[Image.Image] | NDArray[np.float32]

__all__ = ["Raw", "read", "read_audio", "read_image", "read_points", "read_video"]


@runtime_checkable
class Hears(Protocol):
    """The spec of an encoder of audio."""

    sample_rate: int


def read(medium: Medium, slot: InputBranchSpec) -> Raw:
    """Decode a medium for a slot.

    Returns:
        An RGB picture; a list of the slot's `frames` of them; a mono waveform (samples,) at the
        encoder's sample rate; or a cloud (p, 6).

    Raises:
        OSError, ValueError: truncated, of no known format, too large, or not what its kind says.
    """
    if medium.kind == "image":
        return read_image(medium.data)
    if medium.kind == "video":
        return read_video(medium.data, slot.frames)
    if medium.kind == "audio" and isinstance(slot.encoder, Hears):
        return read_audio(medium.data, slot.encoder.sample_rate)
    if medium.kind == "points":
        return read_points(medium.data)
    raise ValueError(f"encoder {slot.encoder.kind!r} reads no {medium.kind}")
