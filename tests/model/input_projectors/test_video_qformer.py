"""Video-LLaMA's two Q-Formers give the published code's numbers."""

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
    frame=replace(SMALL, queries=3), whole=replace(SMALL, queries=4, cross_every=1), positions=5
)
AUDIO = VideoQFormer(frame=None, whole=replace(SMALL, queries=2, cross_every=1), positions=5)


@pytest.mark.parametrize(
    ("spec", "branch", "prefix", "tokens"), [(VIDEO, "video", "", 6), (AUDIO, "audio", "audio_", 1)]
)
@torch.no_grad()
def test_tokens_are_those_of_the_published_code(spec, branch, prefix, tokens):
    stored = load_file(RECORDED)
    weights = {name.removeprefix("weights."): tensor for name, tensor in stored.items()}
    ends = ProjectorShape(parts=3, tokens=tokens, width_in=20, width_out=32)
    module = video_qformer.build(spec, ends).eval()
    module.load_state_dict(
        video_qformer.convert_state_dict({"model": weights}, spec, branch=branch)
    )
    found = module(stored[f"{prefix}features"])
    assert found.shape == (2, spec.tokens(ends), 32)
    torch.testing.assert_close(found, stored[f"{prefix}tokens"], atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_the_order_of_frames_counts():
    torch.manual_seed(0)
    ends = ProjectorShape(parts=3, tokens=6, width_in=20, width_out=32)
    module = video_qformer.build(VIDEO.tiny(), ends).eval()
    torch.nn.init.normal_(module.positions.weight)
    features = torch.randn(1, 3, 6, 20)
    assert not torch.allclose(module(features), module(features.flip(1)), atol=1e-5)


def test_more_frames_than_positions_are_refused():
    with pytest.raises(SpecError, match="33 parts, it has positions for 32"):
        VideoQFormer().tokens(ProjectorShape(parts=33, tokens=257, width_in=1408, width_out=4096))


def test_names_tell_the_frozen_part_from_the_trained_ones():
    names = {
        name
        for name, _ in video_qformer.build(
            VIDEO, ProjectorShape(parts=3, tokens=6, width_in=20, width_out=32)
        ).named_parameters()
    }
    assert {name.partition(".")[0] for name in names} == {"frame", "positions", "whole", "head"}
