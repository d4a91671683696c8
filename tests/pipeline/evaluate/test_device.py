"""Where questions are answered, and how many at a time."""

import pytest
import torch

from etl.cli import UserError
from pipeline.evaluate.device import FittingBatches, inference_device


@pytest.mark.parametrize(
    ("variable", "available", "device"),
    [("", True, "cuda"), ("cuda", True, "cuda"), ("cpu", True, "cpu"), ("", False, "cpu")],
)
def test_the_accelerator_answers_where_there_is_one(
    variable: str, available: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", variable)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert inference_device() == torch.device(device)


@pytest.mark.parametrize(("fits", "parts"), [(9, [8, 2]), (3, [2, 2, 2, 2, 2]), (1, [1] * 10)])
def test_batches_are_halved_until_they_fit(fits: int, parts: list[int]) -> None:
    worked: list[int] = []

    def work(items: list[int]) -> list[int]:
        if len(items) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        worked.append(len(items))
        return [2 * item for item in items]

    batches = FittingBatches(8)
    assert batches.map(work, list(range(10))) == list(range(0, 20, 2))  # type: ignore[arg-type]
    assert worked == parts
    worked.clear()
    batches.map(work, list(range(10)))  # type: ignore[arg-type]
    assert worked == parts  # the size is kept


def test_a_question_that_does_not_fit_alone_is_one_line() -> None:
    def work(items: object) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    message = "^one question does not fit into memory: CUDA out of memory. Tried to allocate 2 GiB$"
    with pytest.raises(UserError, match=message):
        FittingBatches(4).map(work, [1, 2])
