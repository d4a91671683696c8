"""The shuffled stream depends on data, mix and seed alone; each sample comes once per epoch."""

import numpy as np
import pytest

from pipeline.data.shuffle import ShuffledStream, Source


def one_source(rows: int, *, seed: int, epochs: int) -> ShuffledStream:
    return ShuffledStream(
        sources=(Source(first=0, rows=rows, samples_per_epoch=rows),), seed=seed, epochs=epochs
    )


def rows_of(stream: ShuffledStream) -> list[int]:
    return stream.rows(0, len(stream)).tolist()


def test_every_row_comes_once_per_epoch() -> None:
    rows = rows_of(one_source(37, seed=3, epochs=2))
    assert sorted(rows[:37]) == list(range(37))
    assert sorted(rows[37:]) == list(range(37))
    assert rows[:37] != rows[37:]


def test_the_seed_determines_the_order() -> None:
    first, again, other = (one_source(50, seed=seed, epochs=1) for seed in (1, 1, 2))
    assert rows_of(first) == rows_of(again)
    assert rows_of(first) != rows_of(other)


@pytest.mark.parametrize("length", [1, 3, 8, 100])
def test_seeking_gives_the_same_as_iterating(length: int) -> None:
    mixed = (
        Source(first=0, rows=20, samples_per_epoch=7),
        Source(first=20, rows=11, samples_per_epoch=22),
    )
    for stream in (
        one_source(23, seed=1, epochs=3),
        ShuffledStream(sources=mixed, seed=1, epochs=4),
    ):
        everything = rows_of(stream)
        for first in range(0, len(stream), length):
            assert stream.rows(first, first + length).tolist() == everything[first : first + length]


def test_the_stream_ends_where_the_last_epoch_ends() -> None:
    stream = one_source(10, seed=0, epochs=2)
    assert len(stream.rows(18, 40)) == 2
    assert len(stream.rows(20, 40)) == 0


def test_a_source_taken_in_part_gives_all_its_rows_before_any_repeats() -> None:
    stream = ShuffledStream(
        sources=(Source(first=5, rows=12, samples_per_epoch=5),), seed=0, epochs=12
    )
    rows = rows_of(stream)
    for repeat in range(5):
        assert sorted(rows[12 * repeat : 12 * repeat + 10]) != list(range(5, 15))  # shuffled, …
    counts = np.bincount(rows, minlength=17)[5:]
    assert counts.tolist() == [5] * 12  # … and 60 samples are each row five times
    assert len(set(rows[:10])) == 10


def test_each_epoch_has_each_source_in_its_share() -> None:
    sources = (
        Source(first=0, rows=100, samples_per_epoch=100),
        Source(first=100, rows=10, samples_per_epoch=25),
    )
    stream = ShuffledStream(sources=sources, seed=2, epochs=4)
    assert stream.samples_per_epoch == 125
    for epoch in range(4):
        rows = stream.rows(125 * epoch, 125 * (epoch + 1))
        assert (rows >= 100).sum() == 25
        assert sorted(rows[rows < 100].tolist()) == list(range(100))
        assert np.bincount(rows[rows >= 100] - 100, minlength=10).min() >= 2
