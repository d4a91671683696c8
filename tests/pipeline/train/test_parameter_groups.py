"""The learning rate schedule equals transformers' own."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from pipeline.train.parameter_groups import lr_factor


@pytest.mark.parametrize(("warmup", "steps"), [(1, 16), (3, 50), (10, 7), (1, 1)])
def test_the_factor_is_transformers_cosine(warmup: int, steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    assert isinstance(schedule, LambdaLR)
    (expected,) = schedule.lr_lambdas
    for step in range(steps + 2):
        assert lr_factor(step, warmup=warmup, steps=steps) == expected(step)
