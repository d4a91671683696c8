"""Every sample is dealt once, within the budgets, and the ranks have like loads."""

import itertools

import numpy as np
import pytest

from pipeline.data.packing import Deal, Layout, PackedLayout, PaddedLayout, Sizes, assign_to_ranks


def some(count: int, *, seed: int = 0, media: int = 2) -> Sizes:
    random = np.random.default_rng(seed)
    media_n = random.integers(0, media + 1, count)
    tokens_n = np.minimum(2048, random.lognormal(5, 1, count).astype(np.int64) + 100 * media_n + 1)
    return Sizes(
        tokens_n=tokens_n,
        media_n=media_n,
        encoding_n=70.0 * media_n,
        thinking_n=tokens_n.astype(float),
    )


def dealt(found: Deal) -> list[int]:
    return sorted(sample for turn in found for bin_ in turn for sample in bin_)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 64])
@pytest.mark.parametrize(
    "layout",
    [
        PackedLayout(tokens=4096, media=8),
        PackedLayout(tokens=500, media=1),
        PaddedLayout(most=4, order="length"),
        PaddedLayout(most=4, order="position"),
    ],
)
def test_every_sample_is_dealt_once_and_every_rank_has_a_bin_in_each_pass(
    layout: Layout, count: int, ranks: int
) -> None:
    sizes = some(count)
    found = assign_to_ranks(sizes, layout, ranks)
    assert dealt(found) == list(range(count))
    assert found
    assert all(len(turn) == ranks for turn in found)
    for bin_ in (bin_ for turn in found for bin_ in turn):
        assert bin_ == sorted(bin_)
        if isinstance(layout, PaddedLayout):
            assert len(bin_) <= layout.most
        elif len(bin_) > 1:
            assert sizes.tokens_n[bin_].sum() <= layout.tokens
            assert sizes.media_n[bin_].sum() <= layout.media


def test_the_deal_is_a_function_of_the_sizes() -> None:
    layout = PackedLayout(tokens=4096, media=8)
    assert assign_to_ranks(some(64), layout, 2) == assign_to_ranks(some(64), layout, 2)


def test_packing_takes_as_few_passes_as_the_tokens_ask_for() -> None:
    sizes = some(128)
    found = assign_to_ranks(sizes, PackedLayout(tokens=4096, media=1000), 4)
    assert len(found) <= -(-int(sizes.tokens_n.sum()) // (4 * 4096)) + 1


def test_the_bins_of_a_pass_cost_alike_in_both_phases() -> None:
    sizes = some(256)
    for turn in assign_to_ranks(sizes, PackedLayout(tokens=16384, media=1000), 8):
        for cost_n in (sizes.encoding_n, sizes.thinking_n):
            costs = [cost_n[bin_].sum() for bin_ in turn]
            assert max(costs) <= 1.1 * np.mean(costs)


def test_rows_of_like_length_lie_together() -> None:
    sizes = some(64)
    lengths = [
        [sizes.tokens_n[sample] for sample in bin_]
        for turn in assign_to_ranks(sizes, PaddedLayout(most=8, order="length"), 2)
        for bin_ in turn
    ]
    assert all(min(first) >= max(second) for first, second in itertools.pairwise(lengths))


def test_in_order_of_position_the_ranks_take_turns() -> None:
    found = assign_to_ranks(some(8), PaddedLayout(most=2, order="position"), 2)
    assert found == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
