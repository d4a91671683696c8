"""Trains the digits world's vision encoder: a small CLIP-shaped ViT with a patch-wise objective.

Every patch classifies the digit and the colour of its cell (or that it is empty), so that the
features given to a projector encode what is *where*. An encoder trained through mean pooling
localises badly.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from etl.digits.scenes import COLOURS, GRID, POSITIONS, Scene, random_scene, render

log = logging.getLogger(__name__)

IMAGE_SIZE = 48
PATCH = 8
_SIDE = IMAGE_SIZE // PATCH
_NO_DIGIT = 10
_NO_COLOUR = len(COLOURS)


def config() -> CLIPVisionConfig:
    """Return the shape of the encoder: 36 patch tokens of width 128."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )


def processor() -> CLIPImageProcessorPil:
    """Return the image processor saved with the encoder: resize to 48×48, values in [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def _labels(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Digit and colour of each of the 36 patches, from its cell."""
    digits = np.full((GRID, GRID), _NO_DIGIT)
    colours = np.full((GRID, GRID), _NO_COLOUR)
    for mark in scene.marks:
        row, column = divmod(POSITIONS.index(mark.position), GRID)
        digits[row, column] = mark.digit
        colours[row, column] = list(COLOURS).index(mark.colour)
    per_cell = _SIDE // GRID
    cell = np.ones((per_cell, per_cell), dtype=np.int64)
    return np.kron(digits, cell).ravel(), np.kron(colours, cell).ravel()


def batch(rng: np.random.Generator, size: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Generate scenes: pixels (B, 3, 48, 48) in [-1, 1], and patch digits and colours (B, 36)."""
    pixels, digits, colours = [], [], []
    for _ in range(size):
        scene = random_scene(rng, split)
        image = render(scene).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        pixels.append(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1)
        digit_labels, colour_labels = _labels(scene)
        digits.append(digit_labels)
        colours.append(colour_labels)
    return (
        torch.from_numpy(np.stack(pixels)),
        torch.from_numpy(np.stack(digits)),
        torch.from_numpy(np.stack(colours)),
    )


class PatchClassifier(nn.Module):
    """The encoder and two linear heads for training it; only the encoder is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = CLIPVisionModel(config())
        self.digit = nn.Linear(128, _NO_DIGIT + 1)
        self.colour = nn.Linear(128, _NO_COLOUR + 1)

    def forward(self, pixels_b3hw: Tensor) -> tuple[Tensor, Tensor]:
        """Return digit logits (B, 36, 11) and colour logits (B, 36, 7)."""
        features_bnd = self.encoder(pixels_b3hw).last_hidden_state[:, 1:]
        return self.digit(features_bnd), self.colour(features_bnd)


def accuracy(model: PatchClassifier, rng: np.random.Generator, size: int = 1000) -> float:
    """Share of the patches on held-out scans whose digit is predicted correctly."""
    model.eval()
    with torch.no_grad():
        pixels, digits, _ = batch(rng, size, "held_out")
        predicted = model(pixels)[0].argmax(-1)
    marked = digits != _NO_DIGIT
    return float((predicted[marked] == digits[marked]).float().mean())


def train(folder: Path, *, steps: int, seed: int = 0) -> None:
    """Train for `steps` batches of 128 fresh scenes and save encoder and processor to `folder`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = PatchClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for step in range(steps):
        model.train()
        pixels, digits, colours = batch(rng, 128, "train")
        digit_logits, colour_logits = model(pixels)
        loss = F.cross_entropy(digit_logits.flatten(0, 1), digits.flatten())
        loss = loss + F.cross_entropy(colour_logits.flatten(0, 1), colours.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            score = accuracy(model, np.random.default_rng(1))
            log.info("encoder step %d: loss %.4f, held-out patches %.3f", step, float(loss), score)
    model.encoder.save_pretrained(folder)
    processor().save_pretrained(folder)
