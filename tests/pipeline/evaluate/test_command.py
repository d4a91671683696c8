"""The evaluation's options: a number that makes no sense is one line."""

import pytest

from etl.cli import UserError, parse
from pipeline.evaluate.command import EvaluateOptions


@pytest.mark.parametrize("option", ["--batch", "--max-new-tokens", "--limit"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_number_below_one_is_told(option: str, value: str) -> None:
    args = ["--run", "nowhere", "--data", "nowhere", option, value]
    with pytest.raises(UserError, match=rf"{option}: {value}, want at least 1"):
        parse(EvaluateOptions, prog="evaluate", args=args)
