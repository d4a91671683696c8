"""NExT-GPT's output projector: from signal tokens to a generator's condition.

Wu et al. 2023 (arXiv:2309.05519), §3: a linear layer, a small transformer whose decoder has learned
queries, and a linear layer, after GILL (Koh et al. 2023, arXiv:2305.17216).

Shapes: g media, n signal tokens of a medium, d the backbone's width, q queries, v the transformer's
width, w the condition's width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from model.input_projectors.attention import CrossAttention, initialise
from model.input_projectors.latents import Latents
from model.spec.output_branches import OutputTransformer

_ATTENTIONS = {"self_attn": "attention", "multihead_attn": "reading"}
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
        condition_shape: tokens and width of the generator's condition.
    """

    def __init__(
        self, spec: OutputTransformer, width_in: int, condition_shape: tuple[int, int]
    ) -> None:
        super().__init__()
        tokens, width_out = condition_shape
        width, heads = spec.width, spec.heads
        self.enter = nn.Linear(width_in, width)
        self.encoder = nn.ModuleList(
            Layer(width, heads, cross_attends=False) for _ in range(spec.layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.queries = Latents(tokens, width)
        self.decoder = nn.ModuleList(
            Layer(width, heads, cross_attends=True) for _ in range(spec.layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, width_out)
        self.apply(initialise)

    def forward(self, signal_hidden_gnd: Tensor) -> Tensor:
        """Return the condition H (g, q, w) for the hidden states at signal tokens."""
        memory_gnv = self.enter(signal_hidden_gnd)
        for layer in self.encoder:
            memory_gnv = layer(memory_gnv)
        memory_gnv = self.encoder_norm(memory_gnv)
        queries_gqv = self.queries(len(signal_hidden_gnd))
        for layer in self.decoder:
            queries_gqv = layer(queries_gqv, memory_gnv)
        condition_gqw: Tensor = self.leave(self.decoder_norm(queries_gqv))
        return condition_gqw


def build(
    spec: OutputTransformer, width_in: int, condition_shape: tuple[int, int]
) -> OutputTransformerProjector:
    """Return a new projector with random weights."""
    return OutputTransformerProjector(spec, width_in, condition_shape)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of GILL's and NExT-GPT's mapper (`fc`, `tfm`, `model`, `query_embs`)."""
    prefixes = {"fc.": "enter.", "model.": "leave.", "tfm.encoder.norm.": "encoder_norm."}
    prefixes["tfm.decoder.norm."] = "decoder_norm."
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "query_embs":
            found["queries.tokens"] = tensor
            continue
        start = next((start for start in prefixes if name.startswith(start)), None)
        if start is not None:
            found[prefixes[start] + name.removeprefix(start)] = tensor
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
