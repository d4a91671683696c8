"""The private ops of PyTorch that multiply with packed weights."""

import pytest
import torch
import torch.nn.functional as F

from model.compat.torch import can_be_packed, pack_weight, packed_linear


@pytest.mark.parametrize(("inputs", "outputs"), [(128, 384), (96, 8), (8, 96), (100, 33)])
def test_products_are_those_of_linear_and_do_not_depend_on_the_number_of_rows(
    inputs: int, outputs: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    rows = torch.randn(40, inputs, generator=generator)
    assert can_be_packed(weight)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            packed = pack_weight(weight)
            whole = packed_linear(rows, packed, bias)
            torch.testing.assert_close(whole, F.linear(rows, weight, bias))
            for count in (1, 2, 3, 4, 5, 8, 17, 33, 40):
                assert torch.equal(packed_linear(rows[:count], packed, bias), whole[:count])
                one = rows[count - 1].expand(1, 1, inputs)
                assert torch.equal(packed_linear(one, packed, bias)[0, 0], whole[count - 1])
            assert torch.equal(packed_linear(rows, packed, None) + bias, whole)
    finally:
        torch.set_num_threads(threads)


def test_other_types_are_not_packed() -> None:
    assert not can_be_packed(torch.ones(4, 4, dtype=torch.bfloat16))
    assert not can_be_packed(torch.ones(4, 4, device="meta"))
