"""Cross-attention and weight initialisation that the projectors share.

Shapes: b batch, q queries, n keys, h heads, c width of a head, d width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

INIT_STD = 0.02
"""Standard deviation of new weights, as in BERT."""


class CrossAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, §3.2.2) of queries to other tokens.

    PyTorch's own module accesses its output layer's weight outside that layer, which under ZeRO-3
    triggers a hidden gather; here every weight is used by its own layer only.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_width: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = heads * head_width if head_width else width
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, inner, bias=bias)
        self.key = nn.Linear(width, inner, bias=bias)
        self.value = nn.Linear(width, inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=bias)

    def forward(self, queries_bqd: Tensor, keys_bnd: Tensor, values_bnd: Tensor) -> Tensor:
        """Return the attention output (b, q, d)."""
        mixed_bhqc = scaled_dot_product_attention(
            self._split(self.query(queries_bqd)),
            self._split(self.key(keys_bnd)),
            self._split(self.value(values_bnd)),
            dropout_p=self.dropout if self.training else 0.0,
        )
        out_bqd: Tensor = self.out(mixed_bhqc.transpose(1, 2).flatten(2))
        return out_bqd

    def _split(self, tokens_bnd: Tensor) -> Tensor:
        return tokens_bnd.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def initialise(module: nn.Module) -> None:
    """Initialise a linear layer or an embedding as in BERT, biases with zero.

    Layers with fewer than 625 inputs have a larger deviation than BERT's 0.02: otherwise
    activations shrink from layer to layer, and small models hardly react to their features.
    """
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=max(INIT_STD, 0.5 * module.in_features**-0.5))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
