"""The options of `evaluate`."""

import pytest

from etl.cli import UserError, parse
from pipeline.evaluate.evaluate import EvaluateOptions


@pytest.mark.parametrize("option", ["--batch", "--max-new-tokens", "--limit"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_number_below_one_is_an_error(option: str, value: str) -> None:
    args = ["--run", "nowhere", "--data", "nowhere", option, value]
    with pytest.raises(UserError, match=rf"{option}: {value}, want at least 1"):
        parse(EvaluateOptions, prog="evaluate", args=args)
