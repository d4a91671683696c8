"""X-LLM's speech encoder and C-Former: sizes, stored weights, and waveforms of any length."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertModel

from model.encoders.cformer import bert_config, build, preprocess
from model.spec.audio import CFormer

PUBLISHED = CFormer(weights="OWNER/NAME:FILE")
TINY = PUBLISHED.tiny()


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return build(TINY, weights="random", dtype=torch.float32)


@pytest.fixture
def mel():
    return torch.randn(2, *TINY.shape)


def test_as_many_tokens_fire_as_the_spec_says(encoder, mel):
    assert encoder(mel).shape == (2, TINY.tokens, TINY.width)


def test_frames_are_halved_three_times(encoder, mel):
    states, weights = encoder.speech(mel)
    assert states.shape == (2, 12, TINY.speech_width)
    assert weights.shape == (2, 12)


def test_padding_has_zero_weight(encoder, mel):
    mel[1, 40:] = 0
    _, weights = encoder.speech(mel)
    assert weights[0].all()
    assert weights[1].bool().tolist() == [True] * 5 + [False] * 7


def test_dummies_and_half_precision_are_finite():
    encoder = build(TINY, weights="random", dtype=torch.bfloat16)
    tokens = encoder(torch.zeros(2, *TINY.shape))
    assert tokens.dtype == torch.bfloat16
    assert tokens.isfinite().all()


def test_training_mode_and_the_other_clips_change_nothing(encoder, mel):
    with torch.no_grad():
        as_built = encoder(mel)
        alone = encoder.eval()(mel[:1])
        together = encoder.train()(mel)
    assert torch.allclose(alone, together[:1], atol=1e-5)
    assert torch.allclose(as_built, together, atol=1e-5)


def test_every_used_weight_gets_a_gradient(encoder, mel):
    encoder(mel).square().sum().backward()
    still = [name for name, weight in encoder.named_parameters() if weight.grad is None]
    assert still == []


def test_stored_weights_are_loaded(encoder, mel, tmp_path):
    save_file(encoder.speech.state_dict(), tmp_path / "speech.safetensors")
    torch.manual_seed(1)
    bert = BertModel(bert_config(TINY))
    bert.save_pretrained(tmp_path)
    spec = replace(TINY, weights=str(tmp_path / "speech.safetensors"), transformer=str(tmp_path))
    loaded = build(spec, weights="pretrained", dtype=torch.float32)
    for name, weight in encoder.speech.state_dict().items():
        assert torch.equal(loaded.speech.state_dict()[name], weight)
    query = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(loaded.transformer.get_parameter(query), bert.get_parameter(query))
    assert loaded(mel).shape == (2, TINY.tokens, TINY.width)


def test_the_full_size_is_counted_on_the_meta_device():
    with torch.device("meta"):
        encoder = build(PUBLISHED, weights="random", dtype=torch.bfloat16)
    bert = sum(weight.numel() for weight in encoder.transformer.parameters())
    # BERT-base has 110M, of which 23.4M are word embeddings and 0.6M the pooler (Devlin et al.).
    assert bert == pytest.approx(110e6 - 23.4e6 - 0.6e6, rel=0.01)


@pytest.mark.parametrize("samples", [0, 5_000, 16_000, 40_000])
def test_a_waveform_of_any_length_is_truncated_or_padded(samples):
    waveform = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    mel = preprocess(TINY, waveform)
    assert mel.shape == (1, *TINY.shape)
    assert mel.isfinite().all()
    frames = 1 + max(0, samples - 400) // 160
    assert not mel[0, frames:].any()
