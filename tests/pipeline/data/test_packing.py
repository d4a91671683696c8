"""Every sample is assigned once, within the budgets, and the ranks have similar loads."""

import itertools

import numpy as np
import pytest

from pipeline.data.packing import (
    Assignment,
    Layout,
    PackedLayout,
    PaddedLayout,
    SampleSizes,
    assign_to_ranks,
)


def random_sizes(count: int, *, seed: int = 0, media: int = 2) -> SampleSizes:
    random = np.random.default_rng(seed)
    media_n = random.integers(0, media + 1, count)
    tokens_n = np.minimum(2048, random.lognormal(5, 1, count).astype(np.int64) + 100 * media_n + 1)
    return SampleSizes(
        tokens_n=tokens_n,
        media_n=media_n,
        encoder_cost_n=70.0 * media_n,
        backbone_cost_n=tokens_n.astype(float),
    )


def assigned(assignment: Assignment) -> list[int]:
    return sorted(sample for bins in assignment for bin_ in bins for sample in bin_)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 64])
@pytest.mark.parametrize(
    "layout",
    [
        PackedLayout(max_tokens=4096, max_media=8),
        PackedLayout(max_tokens=500, max_media=1),
        PaddedLayout(max_samples=4, order="length"),
        PaddedLayout(max_samples=4, order="position"),
    ],
)
def test_every_sample_is_assigned_once_and_every_rank_has_a_bin_in_each_micro_step(
    layout: Layout, count: int, ranks: int
) -> None:
    sizes = random_sizes(count)
    found = assign_to_ranks(sizes, layout, ranks)
    assert assigned(found) == list(range(count))
    assert found
    assert all(len(bins) == ranks for bins in found)
    for bin_ in (bin_ for bins in found for bin_ in bins):
        assert bin_ == sorted(bin_)
        if isinstance(layout, PaddedLayout):
            assert len(bin_) <= layout.max_samples
        elif len(bin_) > 1:
            assert sizes.tokens_n[bin_].sum() <= layout.max_tokens
            assert sizes.media_n[bin_].sum() <= layout.max_media


def test_the_assignment_is_a_function_of_the_sizes() -> None:
    layout = PackedLayout(max_tokens=4096, max_media=8)
    assert assign_to_ranks(random_sizes(64), layout, 2) == assign_to_ranks(
        random_sizes(64), layout, 2
    )


def test_packing_needs_no_more_micro_steps_than_the_tokens_fill() -> None:
    sizes = random_sizes(128)
    found = assign_to_ranks(sizes, PackedLayout(max_tokens=4096, max_media=1000), 4)
    assert len(found) <= -(-int(sizes.tokens_n.sum()) // (4 * 4096)) + 1


def test_the_bins_of_a_micro_step_have_similar_costs_in_both_phases() -> None:
    sizes = random_sizes(256)
    for bins in assign_to_ranks(sizes, PackedLayout(max_tokens=16384, max_media=1000), 8):
        for cost_n in (sizes.encoder_cost_n, sizes.backbone_cost_n):
            costs = [cost_n[bin_].sum() for bin_ in bins]
            assert max(costs) <= 1.1 * np.mean(costs)


def test_samples_of_similar_length_share_a_bin() -> None:
    sizes = random_sizes(64)
    lengths = [
        [sizes.tokens_n[sample] for sample in bin_]
        for bins in assign_to_ranks(sizes, PaddedLayout(max_samples=8, order="length"), 2)
        for bin_ in bins
    ]
    assert all(min(first) >= max(second) for first, second in itertools.pairwise(lengths))


def test_in_order_of_position_the_ranks_take_consecutive_samples() -> None:
    found = assign_to_ranks(random_sizes(8), PaddedLayout(max_samples=2, order="position"), 2)
    assert found == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
