"""What a run replies: text with a placeholder where each medium stands, and the media as files.

Shapes: t samples of a sound, hw sides in pixels, f frames.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from etl.cli import UserError
from etl.storage.atomic import atomic_file
from pipeline.evaluate.sampling_options import SamplingOptions

REPLIES = "replies.jsonl"
SUFFIXES = {"image": ".png", "video": ".mp4", "audio": ".wav"}
MIMES = {"image": "image/png", "video": "video/mp4", "audio": "audio/wav"}
FRAMES_PER_SECOND = 8
"""Of videos, as in NExT-GPT's demonstration; Zeroscope's 24 frames are three seconds."""

_QUALITY = "12"
"""Constant rate factor of H.264; 0 is lossless, 18 is mostly taken for transparent."""


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(SamplingOptions):
    """How replies are generated: how their tokens are chosen, and how their media are denoised.

    The seed, a sample's id and the number of a medium in its reply seed the medium's first noise.

    Raises:
        UserError: a value out of its range.
    """

    steps: int | None = None
    """Of denoising. Default: each generator's own."""
    guidance_scale: float | None = None
    """Of classifier-free guidance; 1 is without. Default: each generator's own."""
    max_new_tokens: int = 256
    """Longest text of a reply in tokens."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of its range."""
        super().__post_init__()
        for name in ("steps", "guidance_scale", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise UserError(f"--{name.replace('_', '-')}: {value}, want at least 1")


@dataclass(frozen=True, kw_only=True)
class GeneratedMedium:
    """A generated medium.

    Args:
        kind: of the medium.
        values: float32 on the CPU: pixels (3, h, w), or of a video (f, 3, h, w), in [0, 1]; of a
            sound its samples (t,) in [-1, 1].
        seed: of its first noise.
        sample_rate: of a sound.
    """

    kind: str
    values: Tensor = field(repr=False)
    seed: int
    sample_rate: int | None = None

    def encoded(self) -> bytes:
        """Return the content of a PNG, MP4 (H.264) or WAV (16 bits) file."""
        if self.kind == "audio":
            assert self.sample_rate is not None
            return _wav(self.values, self.sample_rate)
        if self.kind == "video":
            return _mp4(_pixels(self.values))
        stream = io.BytesIO()
        Image.fromarray(_pixels(self.values[None])[0]).save(stream, "PNG")
        return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer.

    Args:
        id: the sample's.
        text: with a placeholder such as `<image>` for each of the media, in order.
        media: that it holds.
        skip_reason: why the sample could not be answered; empty if it was.
    """

    id: str
    text: str = ""
    media: tuple[GeneratedMedium, ...] = ()
    skip_reason: str = ""

    def save(self, folder: Path | str, name: str = "") -> dict[str, Any]:
        """Write the media to files, each atomically.

        Args:
            folder: is made if it does not exist.
            name: with which the files' names begin; by default the sample's id.

        Returns:
            The reply as `replies.jsonl` has it, with the names of the files.

        Raises:
            UserError: a file cannot be written.
        """
        media = []
        for number, medium in enumerate(self.media, start=1):
            file = Path(folder) / f"{name or self.id}-{number}{SUFFIXES[medium.kind]}"
            try:
                with atomic_file(file) as stream:
                    stream.write(medium.encoded())
            except OSError as error:
                raise UserError(f"{file}: cannot be written ({error.strerror})") from None
            media.append({"kind": medium.kind, "file": file.name, "seed": medium.seed})
        return {"id": self.id, "text": self.text, "media": media}


def reply_line(value: dict[str, Any]) -> bytes:
    """Return one line of `replies.jsonl`."""
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _pixels(values_f3hw: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return pixels (f, h, w, 3) as bytes, rounded as diffusers does."""
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = (
        (values_f3hw * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    )
    return pixels


def _mp4(pixels_fhw3: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        # One thread, and no date: the same frames give the same bytes.
        options = {"crf": _QUALITY, "threads": "1"}
        track = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        track.height, track.width = pixels_fhw3.shape[1:3]
        track.pix_fmt = "yuv420p"
        track.time_base = Fraction(1, FRAMES_PER_SECOND)
        for pixels_hw3 in pixels_fhw3:
            container.mux(track.encode(av.VideoFrame.from_ndarray(pixels_hw3, format="rgb24")))
        container.mux(track.encode(None))
    return stream.getvalue()


def _wav(samples_t: Tensor, sample_rate: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(
        stream, samples_t.clamp(-1, 1).numpy(), sample_rate, format="WAV", subtype="PCM_16"
    )
    return stream.getvalue()
