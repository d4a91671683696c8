"""Keys are of content: of weights and bytes, not of names."""

from dataclasses import replace

import torch
from torch import nn

from model.build import build, build_inputs
from model.presets import system
from pipeline.feature_cache.cache_key import encoder_producer, fingerprint, medium_key


def test_a_weight_a_buffer_a_name_and_a_type_change_the_fingerprint() -> None:
    def layer(**change: object) -> nn.BatchNorm1d:
        made = nn.BatchNorm1d(4)
        for name, value in change.items():
            getattr(made, name).data[0] = value
        return made

    plain = fingerprint(layer())
    assert plain == fingerprint(layer())
    others = [
        layer(weight=2.0),
        layer(running_mean=2.0),
        layer().to(torch.bfloat16),
        nn.Sequential(layer()),
    ]
    assert len({plain, *map(fingerprint, others)}) == 5


def test_an_encoder_alone_is_the_producer_that_the_whole_model_holds() -> None:
    digits = system("digits_omni")
    whole = build(digits.model, digits.pt, weights="random", seed=3)
    parts = build_inputs(digits.model, digits.pt, weights="random", seed=3)
    for slot in digits.model.inputs:
        owner = slot.encoder_of or slot.modality
        alone = encoder_producer(slot, parts[owner]["encoder"])
        assert alone == encoder_producer(slot, whole.encoder(slot.modality))
        assert alone.dtype == "float32"
        assert alone.to_json()["spec"]["kind"] == slot.encoder.kind


def test_how_a_medium_is_read_is_part_of_its_key() -> None:
    video = system("digits_video").model.input_branch("video")
    digest = bytes(32)
    assert medium_key(digest, video) == medium_key(digest, replace(video, pool="mean"))
    assert medium_key(digest, video) != medium_key(digest, replace(video, frames=2))
    assert medium_key(digest, video) != medium_key(bytes(31) + b"1", video)
