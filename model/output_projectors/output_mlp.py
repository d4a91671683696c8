"""CoDi-2's output projector: each signal token to a token of the generator's condition.

Tang et al. 2023 (arXiv:2311.18775), §3: linear, GELU, LayerNorm, linear, as its input projector
towards the other side (microsoft/i-Code, `codi_llama_decode`).

Shapes: g media, n signal tokens of a medium, d the backbone's width, l and w tokens and width of a
condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from model.input_projectors.attention import initialise
from model.output_projectors.streams import join_streams
from model.spec.output_branches import OutputMlp


class OutputMlpProjector(nn.Module):
    """H_X = Θ_out(S_X) (survey §2.4), token by token.

    Args:
        width_in: the backbone's.
        streams: tokens and width of each stream of the condition; as many signal tokens in all.
    """

    def __init__(self, width_in: int, streams: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self._tokens = [tokens for tokens, _ in streams]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width_in, width),
                nn.GELU(),
                nn.LayerNorm(width),
                nn.Linear(width, width),
            )
            for _, width in streams
        )
        self.apply(initialise)

    def forward(self, signal_hidden_gnd: Tensor) -> Tensor:
        """Return the condition H (g, l, w) for the hidden states of signal tokens."""
        parts = signal_hidden_gnd.split(self._tokens, dim=1)
        return join_streams([mlp(part) for mlp, part in zip(self.layers, parts, strict=True)])


def build(spec: OutputMlp, width_in: int, streams: Sequence[tuple[int, int]]) -> OutputMlpProjector:
    """Return a new projector with random weights."""
    return OutputMlpProjector(width_in, streams)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of CoDi-2's `codi_llama_decode` (`0`, `2`, `3`), of its one stream."""
    return {f"layers.0.{name}": tensor for name, tensor in state.items()}
