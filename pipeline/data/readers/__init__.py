"""Decoders of media: from the file's bytes to the input of an encoder's `preprocess`.

Media come from the web: every reader limits the size of what it decodes, opens nothing but the
bytes it is given, and raises OSError or ValueError, in one line, for what it cannot read.
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

RawMedium = Image.Image | list[Image.Image] | NDArray[np.float32]

__all__ = [
    "AudioEncoderSpec",
    "RawMedium",
    "read_audio",
    "read_image",
    "read_medium",
    "read_points",
    "read_video",
]


@runtime_checkable
class AudioEncoderSpec(Protocol):
    """The spec of an encoder of audio."""

    sample_rate: int


def read_medium(medium: Medium, branch: InputBranchSpec) -> RawMedium:
    """Decode a medium for an input branch.

    Returns:
        An RGB image; a list of the branch's `frames` images of a video; a mono waveform (samples,)
        at the encoder's sample rate; or a point cloud (p, 6).

    Raises:
        OSError, ValueError: truncated, of an unknown format, too large, or not of its kind.
    """
    if medium.kind == "image":
        return read_image(medium.data)
    if medium.kind == "video":
        return read_video(medium.data, branch.frames)
    if medium.kind == "audio" and isinstance(branch.encoder, AudioEncoderSpec):
        return read_audio(medium.data, branch.encoder.sample_rate)
    if medium.kind == "points":
        return read_points(medium.data)
    raise ValueError(f"encoder {branch.encoder.kind!r} does not take {medium.kind}")
