"""For any number of ranks, the partitions together hold each element once."""

import math

import pytest
import torch

from pipeline.checkpoint.reshard import SavedParameters, Span, partition_group, partition_parameters

SHAPES = {"a": (3, 5), "b": (1,), "c": (4, 4), "d": (7,)}
TOTAL = sum(math.prod(shape) for shape in SHAPES.values())
RANKS = [1, 2, 3, 4, 7]


def partitions(stage: int, ranks: int) -> list[list[Span]]:
    if stage == 3:
        return [list(partition_parameters(SHAPES, ranks, rank)) for rank in range(ranks)]
    return [list(partition_group(SHAPES, -(-TOTAL // ranks), rank)) for rank in range(ranks)]


class InMemory:
    """The flat tensors of some ranks: element i of parameter number x is 100·x + i."""

    def __init__(self, stage: int, ranks: int) -> None:
        self.ranks = ranks
        self._spans = partitions(stage, ranks)
        self._flats = [torch.full((TOTAL + 4 * ranks,), -1.0) for _ in range(ranks)]
        for spans, flat in zip(self._spans, self._flats, strict=True):
            for span in spans:
                first = 100.0 * list(SHAPES).index(span.name) + span.start
                flat[span.offset : span.offset + span.size] = first + torch.arange(span.size)

    def spans(self, rank: int) -> list[tuple[int, Span]]:
        return [(0, span) for span in self._spans[rank]]

    def tensor(self, rank: int, flat: int, key: str) -> torch.Tensor:
        return self._flats[rank]


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("ranks", RANKS)
def test_every_element_is_held_once(stage: int, ranks: int) -> None:
    held = {name: torch.zeros(math.prod(shape)) for name, shape in SHAPES.items()}
    for spans in partitions(stage, ranks):
        offsets = [n for span in spans for n in range(span.offset, span.offset + span.size)]
        assert len(offsets) == len(set(offsets))
        for span in spans:
            held[span.name][span.start : span.start + span.size] += 1
    assert all(bool((count == 1).all()) for count in held.values())


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("before", RANKS)
@pytest.mark.parametrize("now", RANKS)
def test_resharded_tensors_are_those_that_the_new_ranks_would_have_saved(
    stage: int, before: int, now: int
) -> None:
    saved = SavedParameters(InMemory(stage, before))  # type: ignore[arg-type]
    expected = InMemory(stage, now)
    for rank in range(now):
        resharded = torch.full_like(expected.tensor(rank, 0, ""), -1.0)
        for _, span in expected.spans(rank):
            saved.copy(resharded, span, "exp_avg")
        assert torch.equal(resharded, expected.tensor(rank, 0, ""))


def test_missing_elements_are_an_error() -> None:
    saved = SavedParameters(InMemory(2, 2))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="15 of 16 elements"):
        saved.copy(torch.zeros(20), Span(name="a", start=0, offset=0, size=16), "exp_avg")
