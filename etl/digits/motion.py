"""Videos of the digits world: one handwritten scan that moves in one of four directions."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from etl.digits.scenes import (
    CANVAS,
    COLOURS,
    blend,
    random_colour,
    random_scan,
    render_background,
    render_ink,
)

FRAMES_PER_SECOND = 8
_FRAMES = (8, 17)  # in a video, upper bound excluded

DIRECTIONS: dict[str, tuple[int, int]] = {
    "west": (0, -1),
    "east": (0, 1),
    "north": (-1, 0),
    "south": (1, 0),
}
"""Name → rows and columns of a step; rows count downwards, north is up as in `POSITIONS`."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """One moving scan: its digit, colour and direction, and the seed of all other randomness.

    If `crossing`, it crosses the whole canvas through its centre, as a model is asked to show it.
    """

    digit: int
    colour: str
    direction: str
    scan: int
    frames: int
    seed: int
    crossing: bool = False


def random_motion(rng: np.random.Generator, split_name: str) -> Motion:
    """A random motion of a scan of `train` or `held_out`."""
    digit = int(rng.integers(10))
    return Motion(
        digit=digit,
        colour=str(rng.choice(list(COLOURS))),
        direction=str(rng.choice(list(DIRECTIONS))),
        scan=random_scan(rng, split_name, digit),
        frames=int(rng.integers(*_FRAMES)),
        seed=int(rng.integers(2**32)),
    )


def render(motion: Motion) -> NDArray[np.uint8]:
    """Render the frames (F, CANVAS, CANVAS, 3): a steady motion over a dim, noisy background.

    The scan crosses at least three fifths of the available distance, so its direction is visible.
    """
    return _render(motion)[0]


def boxes(motion: Motion) -> NDArray[np.int64]:
    """Return where the scan is in each frame (F, 3): top, left, and side of its square."""
    return _render(motion)[1]


def _render(motion: Motion) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = np.random.default_rng(motion.seed)
    ink_hw1 = render_ink(motion.scan, rng)
    size = len(ink_hw1)
    colour = random_colour(motion.colour, rng)
    level = rng.uniform(5, 45)
    room = CANVAS - size
    across = round(rng.uniform(0, room))
    length = rng.uniform(0.6, 1.0) * room
    begin = rng.uniform(0, room - length)
    if motion.crossing:
        across, begin, length = room // 2, 0.0, room
    path = begin + np.linspace(0, length, motion.frames)
    rows, columns = DIRECTIONS[motion.direction]
    if rows + columns < 0:
        path = room - path
    frames = np.empty((motion.frames, CANVAS, CANVAS, 3), dtype=np.uint8)
    squares = np.full((motion.frames, 3), size)
    for frame, square, along in zip(frames, squares, np.rint(path).astype(int), strict=True):
        canvas = render_background(rng, level)
        square[:2] = top, left = (along, across) if rows else (across, along)
        blend(canvas[top : top + size, left : left + size], ink_hw1, colour)
        frame[:] = canvas
    return frames, squares


def encode(frames: NDArray[np.uint8]) -> bytes:
    """Encode frames as MP4 with H.264; the same frames give the same bytes on one machine."""
    stream = io.BytesIO()
    # `bitexact` omits the libraries' versions. With a constant quantiser x264 does not use its
    # mbtree, which reads uninitialised memory, so that bytes would differ occasionally.
    quality = {"qp": "18", "bf": "0", "preset": "veryfast", "threads": "1", "flags": "+bitexact"}
    with av.open(stream, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        track = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=quality)
        track.height, track.width = frames.shape[1:3]
        track.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(track.encode())
    return stream.getvalue()
