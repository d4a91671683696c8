"""The output projector equals PyTorch's transformer, as in GILL, NExT-GPT and MiniGPT-5."""

import torch
from torch import nn

from model.output_projectors import output_transformer
from model.output_projectors.streams import split_streams
from model.spec.output_branches import OutputTransformer

WIDTH_IN, CONDITIONS = 24, (5, 12)


class Published(nn.Module):
    """The paper's description in PyTorch's modules: fc → transformer with queries → model."""

    def __init__(self, spec: OutputTransformer):
        super().__init__()
        tokens, width_out = CONDITIONS
        self.fc = nn.Linear(WIDTH_IN, spec.width)
        self.tfm = nn.Transformer(
            d_model=spec.width,
            nhead=spec.heads,
            num_encoder_layers=spec.layers,
            num_decoder_layers=spec.layers,
            dim_feedforward=4 * spec.width,
            dropout=0.0,
            norm_first=True,
            batch_first=True,
        )
        self.model = nn.Linear(spec.width, width_out)
        self.query_embs = nn.Parameter(torch.randn(1, tokens, spec.width))

    def forward(self, signals):
        queries = self.query_embs.expand(len(signals), -1, -1)
        return self.model(self.tfm(self.fc(signals), queries))


def test_conditions_equal_those_of_torchs_transformer():
    torch.manual_seed(0)
    spec = OutputTransformer(width=16, layers=2, heads=4)
    published = Published(spec)
    module = output_transformer.build(spec, WIDTH_IN, [CONDITIONS])
    state = published.state_dict()
    module.load_state_dict(output_transformer.convert_state_dict(state))
    signals = torch.randn(3, 4, WIDTH_IN)
    found, wanted = module(signals), published(signals)
    assert found.shape == (3, *CONDITIONS)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


class MiniGpt5(nn.Module):
    """MiniGPT-5's: fc (two layers and a GELU) → transformer with queries, with its names."""

    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()
        first, last = nn.Linear(WIDTH_IN, width), nn.Linear(width, width)
        self.fc = nn.Sequential(first, nn.GELU(), last)
        self.llm_to_t2i_mapping = nn.Transformer(
            d_model=width,
            nhead=heads,
            num_encoder_layers=layers,
            num_decoder_layers=layers,
            dim_feedforward=4 * width,
            dropout=0.0,
            norm_first=True,
            batch_first=True,
        )
        self.t2i_decoder_prompt = nn.Parameter(torch.randn(1, CONDITIONS[0], width))

    def forward(self, signals):
        queries = self.t2i_decoder_prompt.expand(len(signals), -1, -1)
        return self.llm_to_t2i_mapping(self.fc(signals), queries)


def test_conditions_equal_those_of_minigpt_5():
    torch.manual_seed(0)
    spec = OutputTransformer(
        width=CONDITIONS[1], layers=2, heads=4, entry="mlp", projects=False, states="before"
    )
    published = MiniGpt5(spec.width, spec.heads, spec.layers)
    module = output_transformer.build(spec, WIDTH_IN, [CONDITIONS])
    module.load_state_dict(output_transformer.convert_state_dict(published.state_dict()))
    signals = torch.randn(3, 4, WIDTH_IN)
    torch.testing.assert_close(module(signals), published(signals), atol=1e-5, rtol=1e-5)


def test_each_stream_of_a_condition_has_its_own_last_layer():
    spec, streams = OutputTransformer(width=16, layers=1, heads=2), [(3, 8), (5, 6)]
    module = output_transformer.build(spec, WIDTH_IN, streams)
    signals = torch.randn(2, 4, WIDTH_IN)
    found = module(signals)
    assert found.shape == (2, 1, 3 * 8 + 5 * 6)
    before = split_streams(found, streams)
    assert [part.shape for part in before] == [(2, 3, 8), (2, 5, 6)]
    nn.init.zeros_(module.leave[1].weight)
    nn.init.zeros_(module.leave[1].bias)
    after = split_streams(module(signals), streams)
    assert torch.equal(after[0], before[0])
    assert not after[1].any()


def test_the_size_is_next_gpts():
    """512 wide, 4 + 4 layers, from Vicuna 7B to Stable Diffusion: 31.9 M."""
    with torch.device("meta"):
        module = output_transformer.build(OutputTransformer(), 4096, [(77, 768)])
        published = Published(OutputTransformer())
    count = sum(weight.numel() for weight in module.parameters())
    sides = (4096 - WIDTH_IN) * 512 + (768 - 12) * 513 + (77 - 5) * 512
    assert count == sum(weight.numel() for weight in published.parameters()) + sides
