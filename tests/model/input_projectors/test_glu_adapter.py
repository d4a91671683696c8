"""CogVLM's adapter: the published code's numbers, and boundary tokens of every segment."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from model.input_projectors.glu_adapter import build, convert_state_dict
from model.spec import ProjectorShape
from model.spec.glu_adapter import GluAdapter

RECORDED = Path(__file__).parents[1] / "recorded" / "glu_adapter.safetensors"
SHAPE = ProjectorShape(segments=1, tokens=5, width_in=32, width_out=16)


def projector(shape=SHAPE):
    recorded = load_file(RECORDED)
    projector = build(GluAdapter(mlp_width=24), shape)
    features_bfnd, tokens_bke = recorded.pop("input")[:, None], recorded.pop("output")
    projector.load_state_dict(convert_state_dict(recorded))
    return projector, features_bfnd, tokens_bke


def test_tokens_equal_those_of_the_published_code():
    module, features_bfnd, want_bke = projector()
    tokens_bke = module(features_bfnd, None)
    assert tokens_bke.shape[1] == GluAdapter().tokens(SHAPE) == 7
    torch.testing.assert_close(tokens_bke, want_bke, atol=1e-5, rtol=0)


def test_every_segment_is_enclosed_by_begin_and_end():
    shape = ProjectorShape(segments=2, tokens=5, width_in=32, width_out=16)
    module, features_bfnd, want_bke = projector(shape)
    tokens_bke = module(features_bfnd.expand(-1, 2, -1, -1), None)
    assert tokens_bke.shape[1] == GluAdapter().tokens(shape) == 14
    torch.testing.assert_close(tokens_bke, want_bke.repeat(1, 2, 1), atol=1e-5, rtol=0)


def test_the_full_size_has_the_published_count():
    # CogVLM-17B: EVA-2-CLIP-E to Vicuna-7B.
    shape = ProjectorShape(segments=1, tokens=1225, width_in=1792, width_out=4096)
    with torch.device("meta"):
        module = build(GluAdapter(), shape)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == 1792 * 4096 + 3 * 4096 * 11008 + 2 * 4096 + 2 * 4096
    assert GluAdapter().tokens(shape) == 1227
