"""Video-LLaMA's two Q-Formers: the published code's numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.input_projectors import video_qformer
from model.spec import ProjectorShape, SpecError
from model.spec.qformer import QFormer, VideoQFormer

RECORDED = Path(__file__).parents[1] / "recorded" / "video_qformer.safetensors"
SMALL = QFormer(width=24, mlp_width=40, layers=2, heads=2, dropout=0.0)
VIDEO = VideoQFormer(
    frame=replace(SMALL, queries=3),
    whole=replace(SMALL, queries=4, cross_attention_frequency=1),
    max_segments=5,
)
AUDIO = VideoQFormer(
    frame=None, whole=replace(SMALL, queries=2, cross_attention_frequency=1), max_segments=5
)


@pytest.mark.parametrize(
    ("spec", "branch", "prefix", "tokens"), [(VIDEO, "video", "", 6), (AUDIO, "audio", "audio_", 1)]
)
@torch.no_grad()
def test_tokens_equal_those_of_the_published_code(spec, branch, prefix, tokens):
    stored = load_file(RECORDED)
    weights = {name.removeprefix("weights."): tensor for name, tensor in stored.items()}
    shape = ProjectorShape(segments=3, tokens=tokens, width_in=20, width_out=32)
    module = video_qformer.build(spec, shape).eval()
    module.load_state_dict(
        video_qformer.convert_state_dict({"model": weights}, spec, branch=branch)
    )
    found = module(stored[f"{prefix}features"])
    assert found.shape == (2, spec.tokens(shape), 32)
    torch.testing.assert_close(found, stored[f"{prefix}tokens"], atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_the_order_of_frames_matters():
    torch.manual_seed(0)
    shape = ProjectorShape(segments=3, tokens=6, width_in=20, width_out=32)
    module = video_qformer.build(VIDEO.tiny(), shape).eval()
    torch.nn.init.normal_(module.positions.weight)
    features = torch.randn(1, 3, 6, 20)
    assert not torch.allclose(module(features), module(features.flip(1)), atol=1e-5)


def test_more_frames_than_positions_are_refused():
    with pytest.raises(SpecError, match="33 segments, but at most 32 positions"):
        VideoQFormer().tokens(
            ProjectorShape(segments=33, tokens=257, width_in=1408, width_out=4096)
        )


def test_names_distinguish_frozen_and_trained_modules():
    names = {
        name
        for name, _ in video_qformer.build(
            VIDEO, ProjectorShape(segments=3, tokens=6, width_in=20, width_out=32)
        ).named_parameters()
    }
    assert {name.partition(".")[0] for name in names} == {"frame", "positions", "whole", "head"}
