"""Make the digits world's parents anew: `python -m etl.digits.checkpoints [--output DIR]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etl.cli import main, parse
from etl.digits.checkpoints import audio, encoder, frames, language


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the digits world's frozen parents; about half an hour on two cores.

    The 3D one is a class of our own, and trained by `python -m pipeline.quickstart.points_encoder`.
    """

    output: Path = Path(__file__).parent
    """Where the folders `vision`, `frames`, `language` and `audio` go."""
    encoder_steps: int = 2400
    """Batches of 128 pictures for the encoder; 0 leaves it alone."""
    frames_steps: int = 600
    """Batches of 64 pictures for the encoder of frames, which begins as `vision`; 0: none."""
    language_steps: int = 1000
    """Batches of 48 texts for the language model; 0 leaves it alone."""
    audio_steps: int = 400
    """Batches of 64 sounds for the audio encoder; 0 leaves it alone."""


def run(args: Sequence[str]) -> None:
    """Train what is asked for, one after the other."""
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
