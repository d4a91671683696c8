"""Trains the digits world's audio encoder: a small Whisper encoder.

Each token is trained to classify its own 20 ms, as the vision encoder's patches are: which digit
sounds, and whether it is the first, second or third one dialled. So a projector gets *what* and
*when* together.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from etl.digits.tones import (
    MAX_SECONDS,
    MAX_TONES,
    SAMPLE_RATE,
    Dialling,
    random_dialling,
    render,
    timing,
)

log = logging.getLogger(__name__)

SECONDS = int(MAX_SECONDS)
_INPUT_RATE = 16_000  # Whisper's sample rate
_TOKENS = 50 * SECONDS
SILENCE = 10
_NO_INDEX = MAX_TONES
_POOL = 5000  # sounds rendered once; each is used several times
_BATCH = 64


def config() -> WhisperConfig:
    """Return the model's shape: an encoder with 100 tokens of width 128, and a minimal decoder."""
    return WhisperConfig(
        d_model=128,
        encoder_layers=2,
        encoder_ffn_dim=256,
        encoder_attention_heads=4,
        num_mel_bins=80,
        max_source_positions=_TOKENS,
        # The checkpoint's class requires a decoder; it is never used.
        decoder_layers=1,
        decoder_ffn_dim=8,
        decoder_attention_heads=1,
        max_target_positions=1,
        vocab_size=4,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        decoder_start_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def processor() -> WhisperFeatureExtractor:
    """Return the feature extractor saved with the encoder: 80 mel bins, a frame every 10 ms."""
    return WhisperFeatureExtractor(feature_size=80, chunk_length=SECONDS)


def token_labels(dialling: Dialling) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Digit and index of the tone in the middle of each of the 100 tokens' 20 ms."""
    digits = np.full(_TOKENS, SILENCE)
    indices = np.full(_TOKENS, _NO_INDEX)
    middles = (np.arange(_TOKENS) + 0.5) * SAMPLE_RATE * SECONDS / _TOKENS
    for index, (begin, end) in enumerate(timing(dialling)[0]):
        inside = (begin <= middles) & (middles < end)
        digits[inside] = dialling.digits[index]
        indices[inside] = index
    return digits, indices


def pool(rng: np.random.Generator, size: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Generate sounds: spectrograms (B, 80, 200), and the tokens' digits and indices (B, 100)."""
    sounds = [random_dialling(rng, split) for _ in range(size)]
    waves = [resample_poly(render(one), _INPUT_RATE // SAMPLE_RATE, 1) for one in sounds]
    spectrograms = processor()(waves, sampling_rate=_INPUT_RATE, return_tensors="pt")
    labels = [token_labels(one) for one in sounds]
    return (
        spectrograms["input_features"],
        torch.from_numpy(np.stack([digits for digits, _ in labels])),
        torch.from_numpy(np.stack([indices for _, indices in labels])),
    )


class ToneClassifier(nn.Module):
    """The model and two linear heads for training its encoder; only the model is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.model = WhisperModel(config())
        self.digit = nn.Linear(128, SILENCE + 1)
        self.index = nn.Linear(128, _NO_INDEX + 1)

    def forward(self, mel_bmf: Tensor) -> tuple[Tensor, Tensor]:
        """Return digit logits (B, 100, 11) and index logits (B, 100, 4)."""
        features_bnd = self.model.get_encoder()(mel_bmf).last_hidden_state
        return self.digit(features_bnd), self.index(features_bnd)


@torch.no_grad()
def accuracy(model: ToneClassifier, rng: np.random.Generator, size: int = 500) -> float:
    """Share of the non-silent tokens of held-out telephones with correct digit and index."""
    model.eval()
    mel_bmf, digits, indices = pool(rng, size, "held_out")
    predicted_digits, predicted_indices = (logits.argmax(-1) for logits in model(mel_bmf))
    sounding = digits != SILENCE
    correct = (predicted_digits == digits) & (predicted_indices == indices)
    return float(correct[sounding].float().mean())


def train(folder: Path, *, steps: int, seed: int = 0) -> None:
    """Train for `steps` batches of 64 sounds; save model and feature extractor to `folder`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = ToneClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    mel_bmf, digits, indices = pool(rng, _POOL, "train")
    for step in range(steps):
        model.train()
        chosen = torch.from_numpy(rng.integers(_POOL, size=_BATCH))
        digit_logits, index_logits = model(mel_bmf[chosen])
        loss = F.cross_entropy(digit_logits.flatten(0, 1), digits[chosen].flatten())
        loss = loss + F.cross_entropy(index_logits.flatten(0, 1), indices[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            score = accuracy(model, np.random.default_rng(1))
            log.info("audio step %d: loss %.4f, held-out tones %.3f", step, loss.item(), score)
    model.model.save_pretrained(folder)
    processor().save_pretrained(folder)
