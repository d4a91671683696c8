"""Cache keys are of content, weights and bytes, not of names."""

from dataclasses import replace

import torch
from torch import nn

from model.build import build, build_inputs
from model.presets import system
from pipeline.feature_cache.cache_key import fingerprint, media_encoder_id, medium_key


def test_a_weight_a_buffer_a_name_and_a_dtype_change_the_fingerprint() -> None:
    def layer(**change: object) -> nn.BatchNorm1d:
        module = nn.BatchNorm1d(4)
        for name, value in change.items():
            getattr(module, name).data[0] = value
        return module

    plain = fingerprint(layer())
    assert plain == fingerprint(layer())
    others = [
        layer(weight=2.0),
        layer(running_mean=2.0),
        layer().to(torch.bfloat16),
        nn.Sequential(layer()),
    ]
    assert len({plain, *map(fingerprint, others)}) == 5


def test_an_encoder_built_alone_has_the_same_id_as_in_the_whole_model() -> None:
    digits = system("digits_omni")
    model = build(digits.model, digits.pt, weights="random", seed=3)
    modules = build_inputs(digits.model, digits.pt, weights="random", seed=3)
    for branch in digits.model.inputs:
        owner = branch.encoder_of or branch.modality
        alone = media_encoder_id(branch, modules[owner]["encoder"])
        assert alone == media_encoder_id(branch, model.encoder(branch.modality))
        assert alone.dtype == "float32"
        assert alone.to_json()["spec"]["kind"] == branch.encoder.kind


def test_a_medium_s_key_depends_on_how_it_is_read() -> None:
    video = system("digits_video").model.input_branch("video")
    digest = bytes(32)
    assert medium_key(digest, video) == medium_key(digest, replace(video, pool="mean"))
    assert medium_key(digest, video) != medium_key(digest, replace(video, frames=2))
    assert medium_key(digest, video) != medium_key(bytes(31) + b"1", video)
