"""Whisper's encoder: equal to transformers, and waveforms of any length."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import WhisperModel

from model.encoders.whisper import build, preprocess, whisper_config
from model.spec import SpecError
from model.spec.audio import Whisper

PUBLISHED = Whisper(weights="openai/whisper-large-v2")
TINY = replace(PUBLISHED.tiny(), seconds=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a whole model as on the hub, including the decoder."""
    torch.manual_seed(0)
    config = whisper_config(TINY)
    config.decoder_layers, config.decoder_ffn_dim, config.decoder_attention_heads = 1, 32, 2
    config.vocab_size, config.pad_token_id = 32, 0
    path = tmp_path_factory.mktemp("whisper")
    WhisperModel(config).eval().save_pretrained(path)
    return str(path)


def test_published_weights_give_the_same_tokens_as_transformers(folder):
    spec = Whisper(**{**vars(TINY), "weights": folder})
    mel = torch.randn(2, *spec.shape)
    with torch.no_grad():
        tokens = build(spec, weights="pretrained", dtype=torch.float32)(mel)
        expected = WhisperModel.from_pretrained(folder).get_encoder()(mel).last_hidden_state
    assert torch.equal(tokens, expected)
    assert tokens.shape == (2, spec.tokens, spec.width)


@torch.no_grad()
def test_of_weights_for_longer_sounds_the_first_positions_are_used(folder):
    whole = WhisperModel.from_pretrained(folder).get_encoder()
    spec = Whisper(**{**vars(TINY), "weights": folder, "seconds": 1})
    encoder = build(spec, weights="pretrained", dtype=torch.float32)
    assert torch.equal(encoder.tower.embed_positions.weight, whole.embed_positions.weight[:50])
    # What transformers' encoder returns for the sound and its first positions.
    mel = torch.randn(2, *spec.shape)
    whole.embed_positions.weight.data = whole.embed_positions.weight[:50]
    whole.embed_positions.num_embeddings = whole.config.max_source_positions = 50
    assert torch.equal(encoder(mel), whole(mel).last_hidden_state)


def test_weights_for_shorter_sounds_are_refused(folder):
    spec = Whisper(**{**vars(TINY), "weights": folder, "seconds": 4})
    with pytest.raises(SpecError, match="hear 3 seconds, the preset says 4"):
        build(spec, weights="pretrained", dtype=torch.float32)


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        encoder = build(PUBLISHED, weights="random", dtype=torch.bfloat16)
    # The encoder's share of large's 1.55 billion (Radford et al. 2022, table 1).
    assert sum(weight.numel() for weight in encoder.parameters()) == pytest.approx(637e6, rel=0.01)
    assert PUBLISHED.tokens == 1500


@pytest.mark.parametrize("samples", [0, 5_000, 16_000, 40_000])
def test_a_waveform_of_any_length_is_truncated_or_padded(samples):
    waveform = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    mel = preprocess(TINY, waveform)
    assert mel.shape == (1, *TINY.shape)
    assert mel.isfinite().all()
