"""Packing: which of a step's samples go to which micro-step and rank, from their sizes alone.

A step is a fixed set of samples, whatever the number of ranks (see `pipeline.data.shuffle`). It is
divided into *bins*, one for each rank and micro-step. The ranks synchronise in every micro-step, so
that it takes as long as its costliest bin. No sample is carried over to the next step: a run can
resume at any step, on any number of ranks, without knowing what was packed before.

Shapes: n samples of the step, c bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Assignment = list[list[list[int]]]
"""By micro-step and rank, the samples of a bin: ascending indices into the step; may be empty."""


@dataclass(frozen=True, kw_only=True)
class SampleSizes:
    """The sizes and costs of a step's n samples.

    Args:
        tokens_n: of the backbone, including the tokens of media.
        media_n: media to be encoded.
        encoder_cost_n, backbone_cost_n: the costs of the two phases of a micro-step, in one unit.
            All ranks end the first before any rank ends the second.
    """

    tokens_n: NDArray[np.int64]
    media_n: NDArray[np.int64]
    encoder_cost_n: NDArray[np.float64]
    backbone_cost_n: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.tokens_n)


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """The samples of a bin are concatenated into one sequence.

    Args:
        max_tokens: the token budget of a bin; a single sample may exceed it.
        max_media: the media budget of a bin; likewise.
    """

    max_tokens: int
    max_media: int


@dataclass(frozen=True, kw_only=True)
class PaddedLayout:
    """Each sample of a bin is a sequence, padded to the longest.

    Args:
        max_samples: of a bin.
        order: `length` groups samples by length; `position` keeps the order of the stream, for
            losses that compare the samples of a micro-step with each other.
    """

    max_samples: int
    order: Literal["length", "position"]


Layout = PackedLayout | PaddedLayout
"""How the samples of a bin are arranged in a batch."""


def assign_to_ranks(sizes: SampleSizes, layout: Layout, ranks: int) -> Assignment:
    """Assign each sample of a step to one bin; each rank has a bin in each micro-step.

    Args:
        sizes: of the samples, in the order of their positions.
        layout: the limits of a bin.
        ranks: the number of ranks.
    """
    bins = (
        _padded_bins(sizes, layout)
        if isinstance(layout, PaddedLayout)
        else _packed_bins(sizes, layout, ranks)
    )
    bins += [[] for _ in range(-len(bins) % ranks or (0 if bins else ranks))]
    return [bins[first : first + ranks] for first in range(0, len(bins), ranks)]


def _padded_bins(sizes: SampleSizes, layout: PaddedLayout) -> list[list[int]]:
    """Cut the samples, the longest first or in order, into bins of `max_samples`."""
    order = np.arange(len(sizes))
    if layout.order == "length":
        order = np.argsort(-sizes.tokens_n, kind="stable")
    return [
        sorted(order[first : first + layout.max_samples].tolist())
        for first in range(0, len(order), layout.max_samples)
    ]


def _packed_bins(sizes: SampleSizes, layout: PackedLayout, ranks: int) -> list[list[int]]:
    """Fill as few micro-steps as the budgets allow, with bins of similar cost in each."""
    least = max(
        _ceil_div(int(sizes.tokens_n.sum()), layout.max_tokens * ranks),
        _ceil_div(int(sizes.media_n.sum()), layout.max_media * ranks),
        1,
    )
    for micro_steps in range(least, max(least, _ceil_div(len(sizes), ranks)) + 1):
        bins = _fill(sizes, layout, micro_steps * ranks)
        if bins is not None:
            return bins
    raise AssertionError("with a bin for each sample, all samples fit")


def _fill(sizes: SampleSizes, layout: PackedLayout, count: int) -> list[list[int]] | None:
    """Add each sample, the costliest first, to the bin where it lengthens the step least.

    This is Graham's longest-processing-time rule (1969), over two phases. Returns the bins, the
    costliest first; None where the samples do not fit into so many.
    """
    cost_n = sizes.encoder_cost_n + sizes.backbone_cost_n
    tokens_c, media_c = np.zeros(count, np.int64), np.zeros(count, np.int64)
    encoder_cost_c, backbone_cost_c = np.zeros(count), np.zeros(count)
    bins: list[list[int]] = [[] for _ in range(count)]
    for sample in np.argsort(-cost_n, kind="stable").tolist():
        tokens, media = sizes.tokens_n[sample], sizes.media_n[sample]
        encoder_cost = sizes.encoder_cost_n[sample]
        backbone_cost = sizes.backbone_cost_n[sample]
        fits_c = (tokens_c + tokens <= layout.max_tokens) & (media_c + media <= layout.max_media)
        fits_c |= tokens_c == 0
        if not fits_c.any():
            return None
        longest_c = np.maximum(encoder_cost_c + encoder_cost, encoder_cost_c.max())
        longest_c += np.maximum(backbone_cost_c + backbone_cost, backbone_cost_c.max())
        longest_c[~fits_c] = np.inf
        # Of several such bins, the cheapest so far.
        tied_c = np.where(longest_c == longest_c.min(), encoder_cost_c + backbone_cost_c, np.inf)
        chosen = int(tied_c.argmin())
        tokens_c[chosen] += tokens
        media_c[chosen] += media
        encoder_cost_c[chosen] += encoder_cost
        backbone_cost_c[chosen] += backbone_cost
        bins[chosen].append(sample)
    costliest = np.argsort(-(encoder_cost_c + backbone_cost_c), kind="stable").tolist()
    return [sorted(bins[number]) for number in costliest]


def _ceil_div(whole: int, part: int) -> int:
    return -(-whole // part)
