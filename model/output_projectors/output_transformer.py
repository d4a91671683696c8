"""NExT-GPT's output projector: signals in, a generator's conditions out.

Wu et al. 2023 (arXiv:2309.05519), §3: a linear layer, a small transformer whose decoder asks with
learnt queries, and a linear layer, after GILL (Koh et al. 2023, arXiv:2305.17216).

Shapes: g media, n signals of a medium, d the backbone's width, q queries, v the width inside,
w the width of the conditions.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from model.input_projectors.attention import CrossAttention, initialise
from model.input_projectors.latents import Latents
from model.spec.output_branches import OutputTransformer

_PLACES = {"self_attn": "attention", "multihead_attn": "reading"}
_NORMS = {"encoder": ("attention", "mlp"), "decoder": ("attention", "reading", "mlp")}


class Layer(nn.Module):
    """A transformer layer with its norms in front (`norm_first`), as `torch.nn.Transformer` has it.

    Args:
        width, heads: of attention; the feed-forward layer is four times as wide.
        reads: whether it attends to other tokens, too, as a decoder's layer does.
    """

    def __init__(self, width: int, heads: int, *, reads: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        if reads:
            self.reading_norm = nn.LayerNorm(width)
            self.reading = CrossAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(self, values_gqv: Tensor, read_gnv: Tensor | None = None) -> Tensor:
        """Return the values (g, q, v), after a look at `read_gnv` where it is a decoder's."""
        normed_gqv = self.attention_norm(values_gqv)
        values_gqv = values_gqv + self.attention(normed_gqv, normed_gqv, normed_gqv)
        if read_gnv is not None:
            normed_gqv = self.reading_norm(values_gqv)
            values_gqv = values_gqv + self.reading(normed_gqv, read_gnv, read_gnv)
        out_gqv: Tensor = values_gqv + self.mlp(self.mlp_norm(values_gqv))
        return out_gqv


class OutputTransformerProjector(nn.Module):
    """H_X = Θ_out(S_X) (survey §2.4).

    Args:
        spec: the sizes inside.
        width_in: the backbone's.
        conditions: tokens and width of what the generator is told.
    """

    def __init__(self, spec: OutputTransformer, width_in: int, conditions: tuple[int, int]) -> None:
        super().__init__()
        tokens, width_out = conditions
        width, heads = spec.width, spec.heads
        self.enter = nn.Linear(width_in, width)
        self.encoder = nn.ModuleList(Layer(width, heads, reads=False) for _ in range(spec.layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.queries = Latents(tokens, width)
        self.decoder = nn.ModuleList(Layer(width, heads, reads=True) for _ in range(spec.layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, width_out)
        self.apply(initialise)

    def forward(self, signals_gnd: Tensor) -> Tensor:
        """Return the conditions H (g, q, w) of media's signals."""
        read_gnv = self.enter(signals_gnd)
        for layer in self.encoder:
            read_gnv = layer(read_gnv)
        read_gnv = self.encoder_norm(read_gnv)
        asked_gqv = self.queries(len(signals_gnd))
        for layer in self.decoder:
            asked_gqv = layer(asked_gqv, read_gnv)
        conditions_gqw: Tensor = self.leave(self.decoder_norm(asked_gqv))
        return conditions_gqw


def build(
    spec: OutputTransformer, width_in: int, conditions: tuple[int, int]
) -> OutputTransformerProjector:
    """Return a new projector with random weights."""
    return OutputTransformerProjector(spec, width_in, conditions)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of GILL's and NExT-GPT's mapper (`fc`, `tfm`, `model`, `query_embs`)."""
    whole = {"fc.": "enter.", "model.": "leave.", "tfm.encoder.norm.": "encoder_norm."}
    whole["tfm.decoder.norm."] = "decoder_norm."
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "query_embs":
            found["queries.tokens"] = tensor
            continue
        start = next((start for start in whole if name.startswith(start)), None)
        if start is not None:
            found[whole[start] + name.removeprefix(start)] = tensor
        else:
            found |= _layer_tensors(name.removeprefix("tfm."), tensor)
    return found


def _layer_tensors(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return our names for a tensor `encoder.layers.0.…` of torch's transformer."""
    half, _, number, part, *rest = name.split(".")
    place = f"{half}.{number}"
    kind = rest[-1].rpartition("_")[2]
    if part.startswith("norm"):
        return {f"{place}.{_NORMS[half][int(part[4:]) - 1]}_norm.{kind}": tensor}
    if part.startswith("linear"):
        return {f"{place}.mlp.{2 * (int(part[6:]) - 1)}.{kind}": tensor}
    attention = f"{place}.{_PLACES[part]}"
    if rest[0] == "out_proj":
        return {f"{attention}.out.{kind}": tensor}
    pieces = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
    return {f"{attention}.{name}.{kind}": piece for name, piece in pieces}
