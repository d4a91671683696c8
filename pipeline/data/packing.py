"""How a step's samples are dealt to passes and ranks: a pure function of their sizes.

A step is a fixed set of samples, whatever the ranks (see `pipeline.data.shuffle`). It is cut into
*bins*, one for each rank and pass; the ranks meet in every pass, so a pass takes as long as its
dearest bin. Packing stays within a step: nothing is left over for the next one, and a run can go
on at any step on any number of ranks without knowing what was packed before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Deal = list[list[list[int]]]
"""By pass and rank, the samples of a bin: indices into the step, ascending; a bin may be empty."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a step's samples take; n samples.

    Args:
        tokens_n: of the backbone, the media's included.
        media_n: media that are encoded.
        encoding_n, thinking_n: the costs of the two phases of a pass, the encoders' and the
            backbone's, in one unit. All ranks end the first before any ends the second.
    """

    tokens_n: NDArray[np.int64]
    media_n: NDArray[np.int64]
    encoding_n: NDArray[np.float64]
    thinking_n: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.tokens_n)


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """Samples end to end in one long row.

    Args:
        tokens, media: the most in one bin, unless a single sample has more.
    """

    tokens: int
    media: int


@dataclass(frozen=True, kw_only=True)
class PaddedLayout:
    """A row for each sample, as long as the longest of its bin.

    Args:
        most: samples in a bin.
        order: `length` puts samples of like length together; `position` takes them as they come,
            for losses that compare the samples of a pass.
    """

    most: int
    order: Literal["length", "position"]


Layout = PackedLayout | PaddedLayout
"""How the samples of one rank and pass lie in memory."""


def assign_to_ranks(sizes: Sizes, layout: Layout, ranks: int) -> Deal:
    """Deal a step's samples; every sample is in exactly one bin, and each rank has a bin a pass.

    Args:
        sizes: of the samples, in the order of their positions.
        layout: what a bin may hold.
        ranks: how many share the step.
    """
    bins = (
        _rows(sizes, layout) if isinstance(layout, PaddedLayout) else _packed(sizes, layout, ranks)
    )
    bins += [[] for _ in range(-len(bins) % ranks or (0 if bins else ranks))]
    return [bins[first : first + ranks] for first in range(0, len(bins), ranks)]


def _rows(sizes: Sizes, layout: PaddedLayout) -> list[list[int]]:
    """Cut the samples, sorted or not, into bins of `most`; the longest first."""
    order = np.arange(len(sizes))
    if layout.order == "length":
        order = np.argsort(-sizes.tokens_n, kind="stable")
    return [
        sorted(order[first : first + layout.most].tolist())
        for first in range(0, len(order), layout.most)
    ]


def _packed(sizes: Sizes, layout: PackedLayout, ranks: int) -> list[list[int]]:
    """Fill as few passes as the budgets allow, the bins of a pass as alike as can be."""
    least = max(
        _ceil(int(sizes.tokens_n.sum()), layout.tokens * ranks),
        _ceil(int(sizes.media_n.sum()), layout.media * ranks),
        1,
    )
    for passes in range(least, max(least, _ceil(len(sizes), ranks)) + 1):
        bins = _fill(sizes, layout, passes * ranks)
        if bins is not None:
            return bins
    raise AssertionError("a bin for each sample holds every sample")


def _fill(sizes: Sizes, layout: PackedLayout, count: int) -> list[list[int]] | None:
    """Put each sample, the dearest first, where it makes the passes longest by least.

    That is Graham's rule of the longest processing time (1969), over two phases. Returns None
    where the samples do not fit into so many bins; else the bins, the dearest first.
    """
    cost_n = sizes.encoding_n + sizes.thinking_n
    tokens_c, media_c = np.zeros(count, np.int64), np.zeros(count, np.int64)
    encoding_c, thinking_c = np.zeros(count), np.zeros(count)
    bins: list[list[int]] = [[] for _ in range(count)]
    for sample in np.argsort(-cost_n, kind="stable").tolist():
        tokens, media = sizes.tokens_n[sample], sizes.media_n[sample]
        encoding, thinking = sizes.encoding_n[sample], sizes.thinking_n[sample]
        fits_c = (tokens_c + tokens <= layout.tokens) & (media_c + media <= layout.media)
        fits_c |= tokens_c == 0
        if not fits_c.any():
            return None
        longest_c = np.maximum(encoding_c + encoding, encoding_c.max())
        longest_c += np.maximum(thinking_c + thinking, thinking_c.max())
        longest_c[~fits_c] = np.inf
        alike_c = np.where(longest_c == longest_c.min(), encoding_c + thinking_c, np.inf)
        chosen = int(alike_c.argmin())
        tokens_c[chosen] += tokens
        media_c[chosen] += media
        encoding_c[chosen] += encoding
        thinking_c[chosen] += thinking
        bins[chosen].append(sample)
    dearest = np.argsort(-(encoding_c + thinking_c), kind="stable").tolist()
    return [sorted(bins[number]) for number in dearest]


def _ceil(whole: int, part: int) -> int:
    return -(-whole // part)
