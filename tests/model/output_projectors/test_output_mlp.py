"""CoDi-2's output projector equals PyTorch's modules, with the published names."""

import pytest
import torch
from torch import nn

from model.output_projectors import output_mlp
from model.output_projectors.streams import join_streams
from model.spec import SpecError
from model.spec.generators import AudioLdm2, TextToVideo, UnClip
from model.spec.output_branches import OutputBranchSpec, OutputMlp

WIDTH_IN = 24


def published(width):
    """Return `codi_llama_decode`, which maps the backbone's width to ImageBind's."""
    layers = nn.Linear(WIDTH_IN, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, width)
    return nn.Sequential(*layers)


def test_conditions_equal_those_of_codi_2():
    torch.manual_seed(0)
    theirs, module = published(12), output_mlp.build(OutputMlp(), WIDTH_IN, [(1, 12)])
    module.load_state_dict(output_mlp.convert_state_dict(theirs.state_dict()))
    signals = torch.randn(3, 1, WIDTH_IN)
    assert torch.equal(module(signals), theirs(signals))


def test_each_stream_of_a_condition_has_its_own_mlp_and_tokens():
    torch.manual_seed(0)
    module = output_mlp.build(OutputMlp(), WIDTH_IN, [(2, 12), (3, 8)])
    signals = torch.randn(4, 5, WIDTH_IN)
    parts = [module.layers[0](signals[:, :2]), module.layers[1](signals[:, 2:])]
    assert torch.equal(module(signals), join_streams(parts))
    assert module(signals).shape == (4, 1, 2 * 12 + 3 * 8)


@pytest.mark.parametrize(
    ("generator", "tokens"), [(UnClip(), 1), (TextToVideo(), 77), (AudioLdm2(), 8 + 64)]
)
def test_each_token_of_a_condition_has_a_signal_token(generator, tokens):
    modality = generator.media[0]
    fields = {"modality": modality, "projector": OutputMlp(), "generator": generator}
    branch = OutputBranchSpec(signals=tokens, **fields).tiny()
    assert branch.signals == sum(count for count, _ in branch.generator.streams)
    with pytest.raises(SpecError, match=f"signals 4, but the condition has {tokens} tokens"):
        OutputBranchSpec(signals=4, **fields)
