"""Trains the encoder of video frames, in which scans are at any position.

In scenes, scans stay within their cells; in videos they do not. This encoder is initialised from
the vision encoder and trained on both scenes and frames, so it serves images and videos alike.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import CLIPVisionModel

from etl.digits.checkpoints import encoder
from etl.digits.checkpoints.encoder import IMAGE_SIZE, PATCH, PatchClassifier
from etl.digits.motion import boxes, random_motion, render
from etl.digits.scenes import CANVAS, COLOURS

log = logging.getLogger(__name__)

_SIDE = IMAGE_SIZE // PATCH
_NO_DIGIT = 10
_NO_COLOUR = len(COLOURS)
_SCENES, _FRAMES = 24, 40  # per batch
_FRAMES_PER_VIDEO = 4


def covered(square: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of the 36 patches have their centre on a scan (top, left, side)."""
    top, left, side = square
    middles = (np.arange(_SIDE) + 0.5) * CANVAS / _SIDE
    rows = (top <= middles) & (middles < top + side)
    columns = (left <= middles) & (middles < left + side)
    return np.outer(rows, columns).ravel()


def batch(rng: np.random.Generator, size: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Generate frames: pixels (B, 3, 48, 48) in [-1, 1], and patch digits and colours (B, 36)."""
    pixels, digits, colours = [], [], []
    for _ in range(size // _FRAMES_PER_VIDEO):
        motion = random_motion(rng, split)
        frames, squares = render(motion), boxes(motion)
        for number in rng.choice(len(frames), size=_FRAMES_PER_VIDEO, replace=False):
            image = Image.fromarray(frames[number])
            image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
            pixels.append(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1)
            on_scan = covered(squares[number])
            digits.append(np.where(on_scan, motion.digit, _NO_DIGIT))
            colour = list(COLOURS).index(motion.colour)
            colours.append(np.where(on_scan, colour, _NO_COLOUR))
    return (
        torch.from_numpy(np.stack(pixels)),
        torch.from_numpy(np.stack(digits)),
        torch.from_numpy(np.stack(colours)),
    )


@torch.no_grad()
def accuracy(model: PatchClassifier, rng: np.random.Generator, size: int = 400) -> float:
    """Share of held-out frames whose digit is predicted correctly by its patches together."""
    model.eval()
    pixels, digits, _ = batch(rng, size, "held_out")
    log_probs_bnc = model(pixels)[0].log_softmax(-1)[..., :_NO_DIGIT]
    on_scan_bn1 = (digits != _NO_DIGIT)[..., None]
    predicted = (log_probs_bnc * on_scan_bn1).sum(1).argmax(-1)
    return float((predicted == digits.where(digits != _NO_DIGIT, -1).amax(-1)).float().mean())


def _optimizers(model: PatchClassifier) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW for the rest."""
    parameters = list(model.named_parameters())
    matrices = [p for name, p in parameters if p.ndim == 2 and "layers" in name]
    others = [p for name, p in parameters if p.ndim != 2 or "layers" not in name]
    return [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-3, weight_decay=0.05),
    ]


def _lr_factor(step: int, steps: int) -> float:
    """Warmup over 20 steps, times a cosine decay to zero."""
    return min(1.0, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2


def train(folder: Path, vision: Path, *, steps: int, seed: int = 0) -> None:
    """Train the encoder of `vision` for `steps` more batches of 64 images; save to `folder`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = PatchClassifier()
    model.encoder = CLIPVisionModel.from_pretrained(vision)
    optimizers = _optimizers(model)
    schedules = [LambdaLR(o, partial(_lr_factor, steps=steps)) for o in optimizers]
    for step in range(steps):
        model.train()
        parts = encoder.batch(rng, _SCENES, "train"), batch(rng, _FRAMES, "train")
        pixels, digits, colours = (torch.cat(pair) for pair in zip(*parts, strict=True))
        digit_logits, colour_logits = model(pixels)
        loss = F.cross_entropy(digit_logits.flatten(0, 1), digits.flatten())
        loss = loss + F.cross_entropy(colour_logits.flatten(0, 1), colours.flatten())
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % 100 == 0 or step == steps - 1:
            scores = [
                score(model, np.random.default_rng(1), size=400)
                for score in (accuracy, encoder.accuracy)
            ]
            log.info(
                "frames step %d: loss %.4f, held-out frames %.3f, patches of scenes %.3f",
                *(step, loss.item(), *scores),
            )
    model.encoder.save_pretrained(folder)
    encoder.processor().save_pretrained(folder)
