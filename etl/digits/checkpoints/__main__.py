"""Trains the toy checkpoints again: `python -m etl.digits.checkpoints [--output DIR]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etl.cli import main, parse
from etl.digits.checkpoints import audio, encoder, frames, language, pictures, sounds


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the digits world's toy checkpoints; takes about half an hour on two cores.

    The 3D encoder is a class of our own: `python -m pipeline.quickstart.points_encoder` trains it.
    """

    output: Path = Path(__file__).parent
    """Parent of the folders `vision`, `frames`, `language`, `audio` and `generators`."""
    encoder_steps: int = 2400
    """Batches of 128 images for the vision encoder; 0 skips it."""
    frames_steps: int = 600
    """Batches of 64 images for the encoder of frames, initialised from `vision`; 0 skips it."""
    language_steps: int = 1000
    """Batches of 48 texts for the language model; 0 skips it."""
    audio_steps: int = 400
    """Batches of 64 sounds for the audio encoder; 0 skips it."""
    picture_steps: int = 1400
    """Batches of 96 latents for the generator of pictures, after 900 of 24 pictures for its
    autoencoder; 0 skips it."""
    video_steps: int = 700
    """Batches of 24 latents for the generator of videos, which has the autoencoder of
    `generators/image`; 0 skips it."""
    sound_steps: int = 800
    """Batches of 16 sounds for the vocoder of the generator of sounds, and half as many for its
    other parts; 0 skips it."""


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
    generators = options.output / "generators"
    if options.picture_steps:
        pictures.train(generators / "image", autoencoder_steps=900, steps=options.picture_steps)
    if options.video_steps:
        pictures.train_videos(generators / "video", generators / "image", steps=options.video_steps)
    if options.sound_steps:
        sounds.train(generators / "audio", steps=options.sound_steps)


if __name__ == "__main__":
    main(run)
