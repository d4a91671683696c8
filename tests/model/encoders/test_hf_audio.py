"""Encoders of sound of transformers' families: features as published, for any duration."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from model.build import build_input_branch, preprocess
from model.compose.encoders import encoder_from
from model.compose.hf_encoders import audio_from
from model.encoders.hf_audio import build
from model.spec import InputBranchSpec, Mlp, SpecError
from model.spec.decode import decode
from model.spec.hf_encoders import HfAudio
from tests.published_encoders import AUDIO, save_audio

RATE = 16_000
SECONDS = {"whisper": 3.0, "audio-spectrogram-transformer": 3.0}
"""Of the checkpoints; others hear any number, 10 by default."""


@pytest.fixture(scope="module", params=AUDIO)
def case(request, tmp_path_factory):
    """Return a family, transformers' model, its extractor, and the checkpoint's folder."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = save_audio(folder, request.param)
    encoder = theirs.get_encoder() if theirs.config.is_encoder_decoder else theirs
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    return request.param, encoder, extractor, str(folder)


def sound(seconds):
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def published(extractor, waveform, **options):
    found = extractor(waveform, sampling_rate=RATE, return_tensors="pt", **options)
    return found[extractor.model_input_names[0]]


@torch.no_grad()
def test_features_equal_those_of_transformers(case):
    family, theirs, extractor, folder = case
    spec = audio_from(folder)
    assert spec.seconds == SECONDS.get(family, 10.0)
    spec = replace(spec, seconds=3.0)
    padded = {"padding": "max_length", "max_length": 3 * RATE, "truncation": True}
    for length in (1.7, 3.0, 4.1):
        options = {} if family in SECONDS else padded
        expected = published(extractor, sound(length), **options)
        values = preprocess(spec, sound(length))
        assert values.shape == (1, *spec.shape)
        assert torch.equal(values, expected)
    output = theirs(expected, output_hidden_states=True)
    encoder = build(spec, weights="pretrained", dtype=torch.float32)
    torch.testing.assert_close(encoder(values), output.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert output.last_hidden_state.shape == (1, spec.tokens, spec.width)
    encoder = build(replace(spec, feature_layer=1), weights="pretrained", dtype=torch.float32)
    torch.testing.assert_close(encoder(values), output.hidden_states[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_any_number_of_seconds(case):
    family, theirs, _, folder = case
    spec = audio_from(folder, seconds=1.2, clips=2)
    values = preprocess(spec, sound(2.0))
    assert values.shape == (2, *spec.shape)
    alone = preprocess(replace(spec, clips=1), sound(2.0)[round(1.2 * RATE) :])
    assert torch.equal(values[1:], alone)
    encoder = build(spec, weights="pretrained", dtype=torch.float32)
    features = encoder(values)
    assert features.shape == (2, spec.tokens, spec.width)
    if family == "whisper":  # the same positions as in a longer sound
        theirs_whole = theirs.embed_positions.weight
        assert torch.equal(encoder.tower.embed_positions.weight, theirs_whole[: spec.tokens])
    if family == "audio-spectrogram-transformer":
        rows, columns = spec.spectrogram_grid
        whole = theirs.embeddings.position_embeddings
        found = encoder.tower.embeddings.position_embeddings
        full = (whole.shape[1] - 2) // rows
        assert torch.equal(found[:, :2], whole[:, :2])
        for row in range(rows):
            first = slice(2 + row * columns, 2 + (row + 1) * columns)
            start = 2 + row * full
            assert torch.equal(found[:, first], whole[:, start : start + columns])


def test_more_seconds_than_there_are_positions_are_refused(case):
    family, _, _, folder = case
    if family not in SECONDS:
        assert audio_from(folder, seconds=33.0).tokens > 1600
        return
    longer = replace(audio_from(folder), seconds=4.0)
    with pytest.raises(SpecError, match=r"4.0 seconds are longer than the weights .* hear; want"):
        build(longer, weights="pretrained", dtype=torch.float32)


def test_a_spec_survives_its_file(case):
    spec = audio_from(case[3])
    assert decode(HfAudio, json.loads(json.dumps(asdict(spec))), "encoder") == spec
    assert encoder_from(case[3], "audio") == spec


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiny_ones_train_with_a_projector(case, dtype):
    branch = InputBranchSpec(modality="audio", encoder=audio_from(case[3]), projector=Mlp()).tiny()
    assert branch.encoder.seconds == 1
    parts = build_input_branch(branch, 24, "random", dtype)
    features = parts["encoder"].train()(preprocess(branch.encoder, sound(0.8)))
    assert features.dtype == dtype
    tokens = parts["projector"](features[:, None])
    assert tokens.shape == (1, branch.encoder.tokens, 24)
    tokens.square().mean().backward()
    gradients = [weight.grad for weight in parts["encoder"].parameters()]
    assert any(g is not None and g.abs().max() > 0 for g in gradients)


def test_an_empty_sound_is_silence(case):
    spec = audio_from(case[3], seconds=1.0)
    assert preprocess(spec, sound(0)).isfinite().all()


def test_what_cannot_serve_says_why(tmp_path):
    save_audio(tmp_path, "whisper")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(SpecError, match=r"no preprocessor_config.json with a feature_extractor"):
        audio_from(str(tmp_path))
    save_audio(tmp_path, "wavlm")
    with pytest.raises(SpecError, match=r"'hf_audio': 0.01 seconds are too short"):
        audio_from(str(tmp_path), seconds=0.01)
    spec = audio_from(str(tmp_path))
    with pytest.raises(SpecError, match="'bark' is not supported; want audio-spectrogram"):
        replace(spec, config={"model_type": "bark", "hidden_size": 8, "num_mel_bins": 8})
    wrong = replace(spec, config=spec.config | {"hidden_size": 64})
    with pytest.raises(SpecError, match="hidden_size is 32, the preset says 64"):
        build(wrong, weights="pretrained", dtype=torch.float32)
    with pytest.raises(SpecError, match="is not an encoder of pictures"):
        encoder_from(str(tmp_path), "image")
