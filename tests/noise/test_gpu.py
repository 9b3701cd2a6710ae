"""The Triton kernels give the bits of the reference: on a GPU where there is one, in Triton's interpreter elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from tests.noise.tensors import AT, FAMILIES, same, stored, weights
from tests.tiers import tiers
from zerograd.noise import gpu, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every_family = pytest.mark.parametrize("family", FAMILIES)
every_storage = tiers("storage", ["split"], ["float32", "bfloat16"])


def updated(
    module: Any, name: str, exact: torch.Tensor, storage: str, *arguments: Any, last: Any = ()
) -> list[torch.Tensor | None]:
    """The storage after module.update or module.update_low_rank, on the module's device."""
    weight, remainder, rounding = stored(exact, storage)
    device = DEVICE if module is gpu else "cpu"
    on = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    weight, remainder = weight.to(device), None if remainder is None else remainder.to(device)
    getattr(module, name)(weight, remainder, *on, rounding, *last)
    return [weight.cpu(), None if remainder is None else remainder.cpu()]


@every_family
@tiers("first", [77], [0, 256])
@tiers("columns", [300], [1, 130])
def test_fill(family, first, columns):
    rows = torch.tensor([5, 0, 70_000, 9, 3, 1, 2, 8, 11])
    mine, expected = (torch.full((2, 9, columns), torch.nan, device=device) for device in (DEVICE, "cpu"))
    gpu.fill(mine, family, AT, [1, 4_000_000_000], rows, first)
    reference.fill(expected, family, AT, [1, 4_000_000_000], rows, first)
    assert same(mine.cpu(), expected)


@every_family
@every_storage
@tiers("dtype", [torch.bfloat16], [torch.float32])
@tiers("coefficients", [[0.01, -0.01]], [[0.3], [1e-3, -2.0, 0.0]], ids=len)
def test_perturb(family, storage, dtype, coefficients):
    weight, remainder, _ = stored(weights((9, 270), 1), storage)
    rows = torch.arange(9).flip(0) + 5
    expected = [torch.empty(9, 270, dtype=dtype) for _ in coefficients]
    reference.perturb(expected, coefficients, weight, remainder, family, AT, rows, 130)
    mine = [torch.empty(9, 270, dtype=dtype, device=DEVICE) for _ in coefficients]
    low = None if remainder is None else remainder.to(DEVICE)
    gpu.perturb(mine, coefficients, weight.to(DEVICE), low, family, AT, rows, 130)
    assert all(same(a.cpu(), b) for a, b in zip(mine, expected, strict=True))


@every_family
@every_storage
@tiers("decay", [0.99], [1.0])
@tiers("multipliers", [[0.3]], [[0.2, 0.0, -0.7], [0.0]], ids=str)
def test_update(family, storage, decay, multipliers):
    exact = weights((11, 300), 2)
    addresses = [AT._replace(direction=i) for i in range(len(multipliers))]
    mine, expected = (
        updated(module, "update", exact, storage, family, addresses, multipliers, decay) for module in (gpu, reference)
    )
    assert all(same(a, b) for a, b in zip(mine, expected, strict=True))


@every_storage
@tiers("decay", [0.99], [1.0])
@tiers("factors", [5], [1])
def test_update_low_rank(storage, decay, factors):
    exact, left, right = weights((11, 300), 3), torch.randn(factors, 11), torch.randn(factors, 300)
    left[factors // 2] *= factors > 1  # a direction with no coefficient
    mine, expected = (
        updated(module, "update_low_rank", exact, storage, left, right, decay, last=(40,)) for module in (gpu, reference)
    )
    assert all(same(a, b) for a, b in zip(mine, expected, strict=True))


def test_a_strided_weight_is_updated_in_place_and_its_neighbours_are_left():
    whole = torch.randn(6, 400, device=DEVICE)
    before, part = whole.clone(), whole[:, 128:300]
    gpu.update(part, None, "rademacher", [AT], [0.5], 1.0, None)
    expected = before[:, 128:300].cpu().clone()
    reference.update(expected, None, "rademacher", [AT], [0.5], 1.0, None)
    assert same(part.cpu(), expected)
    assert torch.equal(whole[:, :128], before[:, :128])
    assert torch.equal(whole[:, 300:], before[:, 300:])


def test_only_cuda_tensors_of_the_stored_dtypes_are_served():
    assert not gpu.supports(torch.empty(2, 2))
    assert gpu.supports(torch.empty(2, 2, device=DEVICE)) == torch.cuda.is_available()
