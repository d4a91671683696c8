"""NExT-GPT's and MiniGPT-5's output projector: from signal tokens to a generator's condition.

A small transformer whose decoder has learned queries, after GILL (Koh et al. 2023,
arXiv:2305.17216). NExT-GPT (Wu et al. 2023, arXiv:2309.05519, §3) has a linear layer before and one
after it; MiniGPT-5 (Zheng et al. 2023, arXiv:2310.02239, §3.2) has two with a GELU before, and none
after it.

Shapes: g media, n signal tokens of a medium, d the backbone's width, q queries, v the transformer's
width, w the condition's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from model.input_projectors.attention import CrossAttention, initialise
from model.input_projectors.latents import Latents
from model.output_projectors.streams import join_streams
from model.spec.output_branches import OutputTransformer

_ATTENTIONS = {"self_attn": "attention", "multihead_attn": "reading"}
_PREFIXES = {
    "fc.": "enter.",
    "model.": "leave.0.",
    "tfm.encoder.norm.": "encoder_norm.",
    "tfm.decoder.norm.": "decoder_norm.",
}
_NORMS = {"encoder": ("attention", "mlp"), "decoder": ("attention", "reading", "mlp")}


class Layer(nn.Module):
    """A pre-norm transformer layer, as in `torch.nn.Transformer` with `norm_first`.

    Args:
        width, heads: of attention; the feed-forward layer is four times as wide.
        cross_attends: whether it also has cross-attention, as a decoder layer.
    """

    def __init__(self, width: int, heads: int, *, cross_attends: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        if cross_attends:
            self.reading_norm = nn.LayerNorm(width)
            self.reading = CrossAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(self, states_gqv: Tensor, memory_gnv: Tensor | None = None) -> Tensor:
        """Return hidden states (g, q, v); a decoder layer attends to `memory_gnv`."""
        normed_gqv = self.attention_norm(states_gqv)
        states_gqv = states_gqv + self.attention(normed_gqv, normed_gqv, normed_gqv)
        if memory_gnv is not None:
            normed_gqv = self.reading_norm(states_gqv)
            states_gqv = states_gqv + self.reading(normed_gqv, memory_gnv, memory_gnv)
        out_gqv: Tensor = states_gqv + self.mlp(self.mlp_norm(states_gqv))
        return out_gqv


class OutputTransformerProjector(nn.Module):
    """H_X = Θ_out(S_X) (survey §2.4).

    Args:
        spec: sizes of the transformer.
        width_in: the backbone's.
        streams: tokens and width of each stream of the generator's condition.
    """

    def __init__(
        self, spec: OutputTransformer, width_in: int, streams: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__()
        width, heads = spec.width, spec.heads
        self._tokens = [tokens for tokens, _ in streams]
        self.enter: nn.Module = nn.Linear(width_in, width)
        if spec.entry == "mlp":
            self.enter = nn.Sequential(self.enter, nn.GELU(), nn.Linear(width, width))
        self.encoder = nn.ModuleList(
            Layer(width, heads, cross_attends=False) for _ in range(spec.layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.queries = Latents(sum(self._tokens), width)
        self.decoder = nn.ModuleList(
            Layer(width, heads, cross_attends=True) for _ in range(spec.layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.leave = nn.ModuleList(
            nn.Linear(width, width_out) if spec.projects else nn.Identity()
            for _, width_out in streams
        )
        self.apply(initialise)

    def forward(self, signal_hidden_gnd: Tensor) -> Tensor:
        """Return the condition H (g, q, w) for the hidden states of signal tokens."""
        memory_gnv = self.enter(signal_hidden_gnd)
        for layer in self.encoder:
            memory_gnv = layer(memory_gnv)
        memory_gnv = self.encoder_norm(memory_gnv)
        queries_gqv = self.queries(len(signal_hidden_gnd))
        for layer in self.decoder:
            queries_gqv = layer(queries_gqv, memory_gnv)
        parts = self.decoder_norm(queries_gqv).split(self._tokens, dim=1)
        leaves = zip(self.leave, parts, strict=True)
        return join_streams([leave(part_gqv) for leave, part_gqv in leaves])


def build(
    spec: OutputTransformer, width_in: int, streams: Sequence[tuple[int, int]]
) -> OutputTransformerProjector:
    """Return a new projector with random weights."""
    return OutputTransformerProjector(spec, width_in, streams)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published mapper.

    GILL's and NExT-GPT's are named `fc`, `tfm`, `model` and `query_embs`; MiniGPT-5's `fc.0`,
    `fc.2`, `llm_to_t2i_mapping` and `t2i_decoder_prompt`.
    """
    found: dict[str, Tensor] = {}
    for published, tensor in state.items():
        name = published.replace("llm_to_t2i_mapping.", "tfm.", 1)
        if name in ("query_embs", "t2i_decoder_prompt"):
            found["queries.tokens"] = tensor
            continue
        start = next((start for start in _PREFIXES if name.startswith(start)), None)
        if start is not None:
            found[_PREFIXES[start] + name.removeprefix(start)] = tensor
        else:
            found |= _layer_tensors(name.removeprefix("tfm."), tensor)
    return found


def _layer_tensors(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return our names for a tensor `encoder.layers.0.…` of torch's transformer."""
    half, _, number, module, *rest = name.split(".")
    layer = f"{half}.{number}"
    kind = rest[-1].rpartition("_")[2]
    if module.startswith("norm"):
        return {f"{layer}.{_NORMS[half][int(module[4:]) - 1]}_norm.{kind}": tensor}
    if module.startswith("linear"):
        return {f"{layer}.mlp.{2 * (int(module[6:]) - 1)}.{kind}": tensor}
    attention = f"{layer}.{_ATTENTIONS[module]}"
    if rest[0] == "out_proj":
        return {f"{attention}.out.{kind}": tensor}
    projections = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
    return {f"{attention}.{name}.{kind}": rows for name, rows in projections}
