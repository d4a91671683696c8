"""The kept parents, loaded as published weights are: what their features tell of unseen media."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from etl.digits import motion, solids, tones
from etl.digits.checkpoints import audio, frames
from model.build import ENCODERS, build, preprocess
from model.presets import system
from pipeline.data.readers import read_audio, read_points, read_video

RNG = np.random.default_rng


def encoder_of(name):
    """Return the way in of a preset's only modality, and its frozen encoder."""
    (slot,) = system(name).model.inputs
    file = ENCODERS[type(slot.encoder)]
    return slot, file.make(slot.encoder, weights="pretrained", dtype=torch.float32).eval()


@torch.no_grad()
def probed(known, asked):
    """Return the share of right answers of a linear probe; (features, labels) twice."""
    probe = LogisticRegression(max_iter=200, C=0.1).fit(*known)
    return probe.score(*asked)


def test_clouds_tell_their_digit_and_colour():
    slot, encoder = encoder_of("digits_points")

    def features(split, number):
        drawn = [solids.draw_solid(RNG((number, seed)), split) for seed in range(number)]
        clouds = [read_points(solids.encode(solids.render(one))) for one in drawn]
        with torch.no_grad():
            tokens_bd = encoder(torch.cat([preprocess(slot.encoder, cloud) for cloud in clouds]))[
                :, 0
            ]
        return tokens_bd.numpy(), [one.digit for one in drawn], [one.colour for one in drawn]

    (known, digits, colours), (asked, *truth) = features("train", 200), features("held_out", 100)
    assert probed((known, digits), (asked, truth[0])) > 0.9
    assert probed((known, colours), (asked, truth[1])) > 0.95


def test_sounds_tell_each_token_its_digit():
    slot, encoder = encoder_of("digits_audio")

    def features(split, number):
        drawn = [tones.draw_dialling(RNG((number, seed)), split) for seed in range(number)]
        waves = [read_audio(tones.encode(tones.render(one), "audio/flac"), 16_000) for one in drawn]
        mel = torch.cat([preprocess(slot.encoder, wave) for wave in waves])
        with torch.no_grad():
            tokens_nd = encoder(mel).flatten(0, 1)
        labels = np.concatenate([audio.labels(one)[0] for one in drawn])
        sounding = labels != audio.SILENCE
        return tokens_nd.numpy()[sounding], labels[sounding]

    assert probed(features("train", 60), features("held_out", 30)) > 0.95


def test_frames_tell_their_digit_wherever_it_stands():
    slot, encoder = encoder_of("digits_video")

    def features(split, number):
        drawn = [motion.draw_motion(RNG((number, seed)), split) for seed in range(number)]
        pictures = [read_video(motion.encode(motion.render(one)), 1)[0] for one in drawn]
        with torch.no_grad():
            features_bnd = encoder(torch.cat([preprocess(slot.encoder, one) for one in pictures]))
        middles = [motion.boxes(one)[one.frames // 2] for one in drawn]
        on_scan = torch.from_numpy(np.stack([frames.covered(square) for square in middles]))
        mean_bd = (features_bnd * on_scan[..., None]).sum(1) / on_scan.sum(1, keepdim=True)
        return mean_bd.numpy(), [one.digit for one in drawn]

    assert probed(features("train", 200), features("held_out", 100)) > 0.85


@pytest.mark.parametrize("name", ["digits_video", "digits_audio", "digits_points", "digits_omni"])
def test_presets_load_their_parents(name):
    whole = system(name)
    model = build(whole.model, whole.sft, weights="pretrained")
    assert sum(parameter.numel() for parameter in model.parameters()) < 5_000_000
