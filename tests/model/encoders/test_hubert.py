"""HuBERT: equal to transformers, and waveforms of any length."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from model.encoders.hubert import build, hubert_config, preprocess
from model.spec import SpecError
from model.spec.audio import Hubert

LARGE = Hubert(weights="facebook/hubert-large-ll60k")
SIZES = {
    # Hsu et al. 2021, table 1.
    "large": (LARGE, 317e6),
    "x-large": (replace(LARGE, width=1280, mlp_width=5120, layers=48), 964e6),
    "base": (
        replace(LARGE, width=768, mlp_width=3072, layers=12, heads=12, norm_first=False),
        95e6,
    ),
}


@pytest.mark.parametrize("norm_first", [True, False])
def test_published_weights_give_the_same_tokens_as_transformers_even_in_training(
    tmp_path, norm_first
):
    torch.manual_seed(0)
    spec = replace(LARGE.tiny(), weights=str(tmp_path), norm_first=norm_first)
    config = hubert_config(spec)
    config.layerdrop, config.hidden_dropout = 0.5, 0.5
    HubertModel(config).save_pretrained(tmp_path)
    waveform = torch.randn(2, *spec.shape)
    with torch.no_grad():
        tokens = build(spec, weights="pretrained", dtype=torch.float32).train()(waveform)
        expected = HubertModel.from_pretrained(tmp_path).eval()(waveform).last_hidden_state
    assert torch.allclose(tokens, expected, atol=1e-6)
    assert tokens.shape == (2, spec.tokens, spec.width)


def test_weights_of_another_size_are_refused(tmp_path):
    HubertModel(hubert_config(LARGE.tiny())).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="num_hidden_layers is 2, the preset says 3"):
        build(
            replace(LARGE.tiny(), layers=3, weights=str(tmp_path)),
            weights="pretrained",
            dtype=torch.float32,
        )


@pytest.mark.parametrize("size", SIZES)
def test_the_published_sizes_have_the_published_number_of_parameters(size):
    spec, published = SIZES[size]
    with torch.device("meta"):
        encoder = build(spec, weights="random", dtype=torch.bfloat16)
    count = sum(weight.numel() for weight in encoder.parameters())
    assert count == pytest.approx(published, rel=0.01)


def test_one_second_is_forty_nine_tokens():
    assert replace(LARGE, seconds=1).tokens == 49


@pytest.mark.parametrize("samples", [0, 3_000, 8_000, 20_000])
def test_a_waveform_of_any_length_is_truncated_or_padded(samples):
    spec = LARGE.tiny()
    waveform = np.random.default_rng(0).normal(0.3, 0.1, samples).astype(np.float32)
    fitted = preprocess(spec, waveform)
    assert fitted.shape == (1, *spec.shape)
    heard = fitted[0, : min(samples, spec.shape[0])]
    if samples:
        theirs = Wav2Vec2FeatureExtractor(do_normalize=True)(
            waveform[: spec.shape[0]], sampling_rate=16_000, return_tensors="pt"
        )
        assert torch.allclose(heard, theirs["input_values"][0], atol=1e-4)
    assert not fitted[0, len(heard) :].any()
    as_it_is = preprocess(replace(spec, norm_first=False), waveform)[0, : len(heard)]
    assert torch.equal(as_it_is, torch.from_numpy(waveform)[: len(heard)])
