"""The learning rate goes up and down as transformers' own schedule has it."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from pipeline.train.engine import rate_share


@pytest.mark.parametrize(("warm", "steps"), [(1, 16), (3, 50), (10, 7), (1, 1)])
def test_the_rate_is_transformers_cosine(warm: int, steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, warm, steps)
    assert isinstance(schedule, LambdaLR)
    (share,) = schedule.lr_lambdas
    for step in range(steps + 2):
        assert rate_share(step, warm=warm, steps=steps) == share(step)
