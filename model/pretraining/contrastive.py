"""Contrastive learning over all ranks: projection heads, temperature, hard negatives.

Shapes: b rows of this rank, g rows of all ranks (b of each, in the order of the ranks),
w width of states, e width of the shared space, q queries of a picture.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.input_projectors.attention import initialise


class ProjectionHead(nn.Module):
    """A linear layer into the shared space, and normalisation to unit length."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width)
        initialise(self.linear)

    def forward(self, states_w: Tensor) -> Tensor:
        """Return unit vectors (…, e) for hidden states (…, w)."""
        return F.normalize(self.linear(states_w), dim=-1)


class Temperature(nn.Module):
    """A learned temperature τ, in a module of its own so that ZeRO-3 gathers it."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((1,), start))

    def forward(self, similarity: Tensor) -> Tensor:
        """Return similarity / τ."""
        return similarity / self.value


def gather(rows_b: Tensor) -> Tensor:
    """Return the rows (g, …) of all ranks, which must have the same number; a collective.

    The gradient is that of the sum of all ranks' losses, independently of which rank a row is on.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows_b
    gathered_g: Tensor = _Gather.apply(rows_b)
    return gathered_g


def rank_offset(rows_b: Tensor) -> int:
    """Return the index of this rank's first row among the rows of all ranks."""
    return len(rows_b) * dist.get_rank() if dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, rows_b: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows_b) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows_b.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: object, gradient_g: Tensor) -> Tensor:
        summed_g = gradient_g.contiguous()
        dist.all_reduce(summed_g)
        rows = len(summed_g) // dist.get_world_size()
        return summed_g.narrow(0, rows * dist.get_rank(), rows)


def query_similarity(pictures_xqe: Tensor, texts_ye: Tensor) -> Tensor:
    """Return the similarities (x, y): the maximum over a picture's queries."""
    return torch.einsum("xqe,ye->xyq", pictures_xqe, texts_ye).amax(-1)


@torch.no_grad()
def sample_hard_negatives(
    similarity_bg: Tensor, positives_b: Tensor, valid_g: Tensor
) -> tuple[Tensor, Tensor]:
    """Sample one negative for each row, with a probability that grows with its similarity.

    Args:
        similarity_bg: of this rank's rows to all rows, divided by the temperature.
        positives_b: index of each row's positive among all rows.
        valid_g: mask of rows with a sample; dummy rows are never sampled.

    Returns:
        Indices of the negatives (b,), and whether there was any candidate (b,).
    """
    eligible_bg = valid_g.expand(similarity_bg.shape).clone()
    eligible_bg.scatter_(1, positives_b[:, None], value=False)
    found_b = eligible_bg.any(1)
    # Without a candidate any row is sampled; the loss ignores it.
    logits_bg = similarity_bg.float().masked_fill(~eligible_bg & found_b[:, None], -torch.inf)
    return torch.multinomial(logits_bg.softmax(1), 1)[:, 0], found_b
