"""Trains the toy checkpoints again: `python -m etl.digits.checkpoints [--output DIR]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etl.cli import main, parse
from etl.digits.checkpoints import audio, encoder, frames, language


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the digits world's toy checkpoints; takes about half an hour on two cores.

    The 3D encoder is a class of our own: `python -m pipeline.quickstart.points_encoder` trains it.
    """

    output: Path = Path(__file__).parent
    """Parent of the folders `vision`, `frames`, `language` and `audio`."""
    encoder_steps: int = 2400
    """Batches of 128 images for the vision encoder; 0 skips it."""
    frames_steps: int = 600
    """Batches of 64 images for the encoder of frames, initialised from `vision`; 0 skips it."""
    language_steps: int = 1000
    """Batches of 48 texts for the language model; 0 skips it."""
    audio_steps: int = 400
    """Batches of 64 sounds for the audio encoder; 0 skips it."""


def run(args: Sequence[str]) -> None:
    """Train the selected models, one after the other."""
    options = parse(Options, prog="python -m etl.digits.checkpoints", args=args)
    if options.encoder_steps:
        encoder.train(options.output / "vision", steps=options.encoder_steps)
    if options.frames_steps:
        folder, vision = options.output / "frames", options.output / "vision"
        frames.train(folder, vision, steps=options.frames_steps)
    if options.language_steps:
        language.train(options.output / "language", steps=options.language_steps)
    if options.audio_steps:
        audio.train(options.output / "audio", steps=options.audio_steps)


if __name__ == "__main__":
    main(run)
