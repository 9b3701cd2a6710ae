"""A tensor's memory as bytes is that memory, not a copy."""

from __future__ import annotations

import pytest
import torch

from zerograd.machine.tensor_bytes import tensor_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16, torch.int64, torch.bool])
def test_what_is_written_to_the_bytes_is_in_the_tensor(dtype):
    tensor = torch.zeros(2, 3, dtype=dtype)
    other = torch.ones(2, 3, dtype=dtype)
    tensor_bytes(tensor)[:] = tensor_bytes(other)
    assert torch.equal(tensor, other)
    assert len(tensor_bytes(tensor)) == tensor.nbytes


def test_one_number_has_bytes_and_an_empty_tensor_has_none():
    assert len(tensor_bytes(torch.tensor(1.0))) == 4
    assert len(tensor_bytes(torch.empty(0, 3))) == 0


def test_a_tensor_whose_memory_is_not_in_order_is_refused():
    with pytest.raises(RuntimeError, match="view"):
        tensor_bytes(torch.zeros(2, 3).t())
