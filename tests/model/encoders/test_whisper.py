"""Whisper's encoder: equal to transformers, and waveforms of any length."""

import numpy as np
import pytest
import torch
from transformers import WhisperModel

from model.encoders.whisper import build, preprocess, whisper_config
from model.spec import SpecError
from model.spec.audio import Whisper

PUBLISHED = Whisper(weights="openai/whisper-large-v2")
TINY = PUBLISHED.tiny()


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


def test_weights_of_another_duration_are_refused(folder):
    spec = Whisper(**{**vars(TINY), "weights": folder, "seconds": 3})
    with pytest.raises(SpecError, match="max_source_positions is 50, the preset says 150"):
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
