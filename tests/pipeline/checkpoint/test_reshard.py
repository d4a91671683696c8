"""Whatever the ranks, their parts together are each parameter once."""

import math

import pytest
import torch

from pipeline.checkpoint.reshard import Source, Span, cut_groups, cut_parameters

SHAPES = {"a": (3, 5), "b": (1,), "c": (4, 4), "d": (7,)}
TOTAL = sum(math.prod(shape) for shape in SHAPES.values())
RANKS = [1, 2, 3, 4, 7]


def cuts(stage: int, ranks: int) -> list[list[Span]]:
    if stage == 3:
        return [list(cut_parameters(SHAPES, ranks, rank)) for rank in range(ranks)]
    return [list(cut_groups(SHAPES, -(-TOTAL // ranks), rank)) for rank in range(ranks)]


class Old:
    """The files of a number of ranks, in memory: parameter `x`, element i, is 100·x + i."""

    def __init__(self, stage: int, ranks: int) -> None:
        self.ranks = ranks
        self._cuts = cuts(stage, ranks)
        self._flats = [torch.full((TOTAL + 4 * ranks,), -1.0) for _ in range(ranks)]
        for spans, flat in zip(self._cuts, self._flats, strict=True):
            for span in spans:
                first = 100.0 * list(SHAPES).index(span.name) + span.first
                flat[span.place : span.place + span.size] = first + torch.arange(span.size)

    def pieces(self, rank: int) -> list[tuple[int, Span]]:
        return [(0, span) for span in self._cuts[rank]]

    def tensor(self, rank: int, flat: int, key: str) -> torch.Tensor:
        return self._flats[rank]


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("ranks", RANKS)
def test_every_element_is_held_once(stage: int, ranks: int) -> None:
    held = {name: torch.zeros(math.prod(shape)) for name, shape in SHAPES.items()}
    for spans in cuts(stage, ranks):
        places = [place for span in spans for place in range(span.place, span.place + span.size)]
        assert len(places) == len(set(places))
        for span in spans:
            held[span.name][span.first : span.first + span.size] += 1
    assert all(bool((count == 1).all()) for count in held.values())


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("before", RANKS)
@pytest.mark.parametrize("now", RANKS)
def test_what_is_dealt_out_anew_is_what_those_ranks_would_have_written(
    stage: int, before: int, now: int
) -> None:
    source = Source(Old(stage, before))  # type: ignore[arg-type]
    fresh = Old(stage, now)
    for rank in range(now):
        dealt = torch.full_like(fresh.tensor(rank, 0, ""), -1.0)
        for _, span in fresh.pieces(rank):
            source.fill(dealt, span, "exp_avg")
        assert torch.equal(dealt, fresh.tensor(rank, 0, ""))


def test_an_element_that_no_file_holds_is_an_error() -> None:
    source = Source(Old(2, 2))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="15 of 16 elements"):
        source.fill(torch.zeros(20), Span(name="a", first=0, place=0, size=16), "exp_avg")
