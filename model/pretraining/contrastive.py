"""Comparison over the batches of all ranks: the shared space, its temperature, hard negatives.

Shapes: b rows of this rank, g rows of all ranks (every rank has b, in the order of ranks),
w width of states, e width of the shared space, q queries of a picture.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.input_projectors.attention import initialise


class Space(nn.Module):
    """A linear layer into the space in which things are compared, and there to unit length."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width)
        initialise(self.linear)

    def forward(self, states_w: Tensor) -> Tensor:
        """Return vectors (…, e) of length 1 of states (…, w)."""
        return F.normalize(self.linear(states_w), dim=-1)


class Temperature(nn.Module):
    """A learned temperature τ, in a module of its own: ZeRO-3 gathers it by its call."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((1,), start))

    def forward(self, similarity: Tensor) -> Tensor:
        """Return similarity / τ."""
        return similarity / self.value


def gather(rows_b: Tensor) -> Tensor:
    """Return the rows (g, …) of all ranks, which must have equally many; a collective.

    The gradient is that of the sum of all ranks' losses, so that it does not depend on which rank
    a row is on.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows_b
    gathered_g: Tensor = _Gather.apply(rows_b)
    return gathered_g


def first_row(rows_b: Tensor) -> int:
    """Return where this rank's rows begin among all ranks'."""
    return len(rows_b) * dist.get_rank() if dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, rows_b: Tensor) -> Tensor:
        parts = [torch.empty_like(rows_b) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows_b.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, gradient_g: Tensor) -> Tensor:
        summed_g = gradient_g.contiguous()
        dist.all_reduce(summed_g)
        rows = len(summed_g) // dist.get_world_size()
        return summed_g.narrow(0, rows * dist.get_rank(), rows)


def query_similarity(pictures_xqe: Tensor, texts_ye: Tensor) -> Tensor:
    """Return the similarities (x, y): of a picture's queries the one nearest to the text."""
    return torch.einsum("xqe,ye->xyq", pictures_xqe, texts_ye).amax(-1)


@torch.no_grad()
def draw_negatives(
    similarity_bg: Tensor, positives_b: Tensor, valid_g: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw one wrong partner for each row, the more likely the more similar it is.

    Args:
        similarity_bg: of this rank's rows to all, over the temperature.
        positives_b: which of all is the row's own.
        valid_g: which stand for samples; fillers are not drawn.

    Returns:
        The partners' indices (b,), and whether there was any to choose (b,).
    """
    eligible_bg = valid_g.expand(similarity_bg.shape).clone()
    eligible_bg.scatter_(1, positives_b[:, None], value=False)
    found_b = eligible_bg.any(1)
    # Where nobody is eligible anyone is drawn: the row is left out of the loss.
    logits_bg = similarity_bg.float().masked_fill(~eligible_bg & found_b[:, None], -torch.inf)
    return torch.multinomial(logits_bg.softmax(1), 1)[:, 0], found_b
