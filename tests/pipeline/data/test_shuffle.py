"""The order of samples depends on data, mix and seed alone; every sample comes once per epoch."""

import numpy as np
import pytest

from pipeline.data.shuffle import ShuffledStream, Source


def whole(rows: int, *, seed: int, epochs: int) -> ShuffledStream:
    return ShuffledStream(
        sources=(Source(first=0, rows=rows, draws=rows),), seed=seed, epochs=epochs
    )


def stream(order: ShuffledStream) -> list[int]:
    return order.rows(0, order.positions).tolist()


def test_every_row_comes_once_per_epoch() -> None:
    rows = stream(whole(37, seed=3, epochs=2))
    assert sorted(rows[:37]) == list(range(37))
    assert sorted(rows[37:]) == list(range(37))
    assert rows[:37] != rows[37:]


def test_the_seed_decides_the_order() -> None:
    first, again, other = (whole(50, seed=seed, epochs=1) for seed in (1, 1, 2))
    assert stream(first) == stream(again)
    assert stream(first) != stream(other)


@pytest.mark.parametrize("length", [1, 3, 8, 100])
def test_seeking_gives_what_reading_on_gives(length: int) -> None:
    mixed = (Source(first=0, rows=20, draws=7), Source(first=20, rows=11, draws=22))
    for order in (whole(23, seed=1, epochs=3), ShuffledStream(sources=mixed, seed=1, epochs=4)):
        everything = stream(order)
        for first in range(0, order.positions, length):
            assert order.rows(first, first + length).tolist() == everything[first : first + length]


def test_the_stream_ends_where_the_last_epoch_ends() -> None:
    order = whole(10, seed=0, epochs=2)
    assert len(order.rows(18, 40)) == 2
    assert len(order.rows(20, 40)) == 0


def test_a_source_that_is_drawn_in_part_gives_all_its_rows_before_any_comes_again() -> None:
    order = ShuffledStream(sources=(Source(first=5, rows=12, draws=5),), seed=0, epochs=12)
    rows = stream(order)
    for turn in range(5):
        assert sorted(rows[12 * turn : 12 * turn + 10]) != list(range(5, 15))  # shuffled, …
    counts = np.bincount(rows, minlength=17)[5:]
    assert counts.tolist() == [5] * 12  # … and 60 draws are each row five times
    assert len(set(rows[:10])) == 10


def test_epochs_hold_each_source_in_its_share() -> None:
    sources = (Source(first=0, rows=100, draws=100), Source(first=100, rows=10, draws=25))
    order = ShuffledStream(sources=sources, seed=2, epochs=4)
    assert order.per_epoch == 125
    for epoch in range(4):
        rows = order.rows(125 * epoch, 125 * (epoch + 1))
        assert (rows >= 100).sum() == 25
        assert sorted(rows[rows < 100].tolist()) == list(range(100))
        assert np.bincount(rows[rows >= 100] - 100, minlength=10).min() >= 2
