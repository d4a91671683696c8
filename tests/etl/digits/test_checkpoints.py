"""The toy checkpoints, loaded like published weights: linear probes of their features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from etl.digits import motion, solids, tones
from etl.digits.checkpoints import audio, frames
from etl.digits.generation import CAPTIONS
from etl.digits.judges import judge
from etl.digits.scenes import COLOURS
from model.build import ENCODERS, build, preprocess
from model.generators import latent_diffusion
from model.presets import system
from pipeline.data.readers import read_audio, read_points, read_video
from pipeline.generate.replies import GeneratedMedium

RNG = np.random.default_rng


def encoder_of(name):
    """Return the only input branch of a preset, and its frozen encoder."""
    (branch,) = system(name).model.inputs
    file = ENCODERS[type(branch.encoder)]
    return branch, file.build(branch.encoder, weights="pretrained", dtype=torch.float32).eval()


@torch.no_grad()
def probe_accuracy(train, test):
    """Return the accuracy of a linear probe; both arguments are (features, labels)."""
    probe = LogisticRegression(max_iter=200, C=0.1).fit(*train)
    return probe.score(*test)


def test_cloud_features_encode_digit_and_colour():
    branch, encoder = encoder_of("digits_points")

    def features(split, number):
        subjects = [solids.random_solid(RNG((number, seed)), split) for seed in range(number)]
        clouds = [read_points(solids.encode(solids.render(one))) for one in subjects]
        with torch.no_grad():
            tokens_bd = encoder(torch.cat([preprocess(branch.encoder, cloud) for cloud in clouds]))[
                :, 0
            ]
        return tokens_bd.numpy(), [one.digit for one in subjects], [one.colour for one in subjects]

    (train, digits, colours), (test, *labels) = features("train", 200), features("held_out", 100)
    assert probe_accuracy((train, digits), (test, labels[0])) > 0.9
    assert probe_accuracy((train, colours), (test, labels[1])) > 0.95


def test_sound_tokens_encode_their_digit():
    branch, encoder = encoder_of("digits_audio")

    def features(split, number):
        subjects = [tones.random_dialling(RNG((number, seed)), split) for seed in range(number)]
        waves = [
            read_audio(tones.encode(tones.render(one), "audio/flac"), 16_000) for one in subjects
        ]
        mel = torch.cat([preprocess(branch.encoder, wave) for wave in waves])
        with torch.no_grad():
            tokens_nd = encoder(mel).flatten(0, 1)
        labels = np.concatenate([audio.token_labels(one)[0] for one in subjects])
        sounding = labels != audio.SILENCE
        return tokens_nd.numpy()[sounding], labels[sounding]

    assert probe_accuracy(features("train", 60), features("held_out", 30)) > 0.95


def test_frame_features_encode_the_digit_at_any_position():
    branch, encoder = encoder_of("digits_video")

    def features(split, number):
        subjects = [motion.random_motion(RNG((number, seed)), split) for seed in range(number)]
        pictures = [read_video(motion.encode(motion.render(one)), 1)[0] for one in subjects]
        with torch.no_grad():
            features_bnd = encoder(torch.cat([preprocess(branch.encoder, one) for one in pictures]))
        middles = [motion.boxes(one)[one.frames // 2] for one in subjects]
        on_scan = torch.from_numpy(np.stack([frames.covered(square) for square in middles]))
        mean_bd = (features_bnd * on_scan[..., None]).sum(1) / on_scan.sum(1, keepdim=True)
        return mean_bd.numpy(), [one.digit for one in subjects]

    assert probe_accuracy(features("train", 200), features("held_out", 100)) > 0.85


@pytest.mark.parametrize("name", ["digits_video", "digits_audio", "digits_points", "digits_omni"])
def test_presets_load_their_checkpoints(name):
    whole = system(name)
    model = build(whole.model, whole.sft, weights="pretrained")
    assert sum(parameter.numel() for parameter in model.parameters()) < 5_000_000


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
@torch.no_grad()
def test_generators_show_what_their_captions_say(kind):
    """The ceiling of generation; the judges see written files alone."""
    [branch] = [b for b in system("digits_any").model.outputs if b.modality == kind]
    spec = branch.generator
    loaded = latent_diffusion.build(
        spec, denoising=False, decoding=True, weights="pretrained", dtype=torch.float32
    ).eval()
    tokenizers = latent_diffusion.tokenizers(spec, weights="pretrained")
    directions = list(motion.DIRECTIONS)
    asked = [
        {"digit": str(digit), "colour": colour, "direction": directions[digit % 4]}
        for digit, colour in zip(range(10), 2 * list(COLOURS), strict=False)
    ]
    texts = [CAPTIONS[kind].format(**features) for features in asked]
    ids = torch.tensor([latent_diffusion.caption_ids(spec, tokenizers, text) for text in texts])
    made = loaded.sample(
        loaded.embed(ids),
        seeds=range(10),
        steps=spec.steps,
        guidance_scale=spec.guidance_scale,
    )
    shown = []
    for values, features in zip(made, asked, strict=True):
        rate = spec.sample_rate if kind == "audio" else None
        data = GeneratedMedium(kind=kind, values=values, seed=0, sample_rate=rate).encoded()
        shown.append(all(judge(kind, data, features).values()))
    assert np.mean(shown) >= 0.9
