"""Train the digits world's audio encoder: a small Whisper encoder that follows the dialling.

Every token learns what sounds in its 20 ms, as the vision encoder's patches learn what they see:
which digit, and whether it is the first, second or third to be dialled. So a projector finds *what*
and *when* together.
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
    LONGEST,
    MOST_TONES,
    SAMPLE_RATE,
    Dialling,
    draw_dialling,
    render,
    timing,
)

log = logging.getLogger(__name__)

SECONDS = int(LONGEST)
_HEARD_RATE = 16_000  # samples a second that Whisper wants
_TOKENS = 50 * SECONDS
SILENCE = 10
_NO_TURN = MOST_TONES
_POOL = 5000  # dialled once; each is heard several times
_BATCH = 64


def config() -> WhisperConfig:
    """Return the shape of the model: an encoder of 100 tokens of width 128, hardly any decoder."""
    return WhisperConfig(
        d_model=128,
        encoder_layers=2,
        encoder_ffn_dim=256,
        encoder_attention_heads=4,
        num_mel_bins=80,
        max_source_positions=_TOKENS,
        # The checkpoint's class wants a decoder; nobody listens to it.
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
    """Return the feature extractor saved beside the encoder: 80 mel bins, a frame every 10 ms."""
    return WhisperFeatureExtractor(feature_size=80, chunk_length=SECONDS)


def labels(dialling: Dialling) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Digit and turn of each of the 100 tokens, by the tone in the middle of its 20 ms."""
    digits = np.full(_TOKENS, SILENCE)
    turns = np.full(_TOKENS, _NO_TURN)
    middles = (np.arange(_TOKENS) + 0.5) * SAMPLE_RATE * SECONDS / _TOKENS
    for turn, (begin, end) in enumerate(timing(dialling)[0]):
        inside = (begin <= middles) & (middles < end)
        digits[inside] = dialling.digits[turn]
        turns[inside] = turn
    return digits, turns


def pool(rng: np.random.Generator, size: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw sounds: spectrograms (B, 80, 200) and token labels (B, 100) twice."""
    heard = [draw_dialling(rng, split) for _ in range(size)]
    waves = [resample_poly(render(one), _HEARD_RATE // SAMPLE_RATE, 1) for one in heard]
    spectrograms = processor()(waves, sampling_rate=_HEARD_RATE, return_tensors="pt")
    labels = [labels(one) for one in heard]
    return (
        spectrograms["input_features"],
        torch.from_numpy(np.stack([digits for digits, _ in labels])),
        torch.from_numpy(np.stack([turns for _, turns in labels])),
    )


class ToneReader(nn.Module):
    """The model and the two linear heads that teach its encoder; only the model is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.model = WhisperModel(config())
        self.digit = nn.Linear(128, SILENCE + 1)
        self.turn = nn.Linear(128, _NO_TURN + 1)

    def forward(self, mel_bmf: Tensor) -> tuple[Tensor, Tensor]:
        """Return digit logits (B, 100, 11) and turn logits (B, 100, 4)."""
        features_bnd = self.model.get_encoder()(mel_bmf).last_hidden_state
        return self.digit(features_bnd), self.turn(features_bnd)


@torch.no_grad()
def accuracy(model: ToneReader, rng: np.random.Generator, size: int = 500) -> float:
    """Share of the sounding tokens, of telephones never heard, whose digit and turn are right."""
    model.eval()
    mel_bmf, digits, turns = pool(rng, size, "held_out")
    found_digits, found_turns = (logits.argmax(-1) for logits in model(mel_bmf))
    sounding = digits != SILENCE
    right = (found_digits == digits) & (found_turns == turns)
    return float(right[sounding].float().mean())


def train(folder: Path, *, steps: int, seed: int = 0) -> None:
    """Train for `steps` batches of 64 sounds; save model and feature extractor to `folder`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = ToneReader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    mel_bmf, digits, turns = pool(rng, _POOL, "train")
    for step in range(steps):
        model.train()
        chosen = torch.from_numpy(rng.integers(_POOL, size=_BATCH))
        digit_logits, turn_logits = model(mel_bmf[chosen])
        loss = F.cross_entropy(digit_logits.flatten(0, 1), digits[chosen].flatten())
        loss = loss + F.cross_entropy(turn_logits.flatten(0, 1), turns[chosen].flatten())
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
