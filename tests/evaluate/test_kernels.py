"""The perturbed forward's kernels against the same sums in torch."""

from __future__ import annotations

import pytest
import torch

from zerograd.evaluate import kernels as compiled
from zerograd.noise import LEFT, RIGHT, Address, reference

AT = Address(5, 6, 0, 7)
DTYPES = (torch.float32, torch.bfloat16)


def factor(domain: int, direction: int, rows: slice, first: int, columns: int, family: str) -> torch.Tensor:
    out = torch.empty(1, rows.stop - rows.start, columns)
    reference.fill(out, family, AT._replace(domain=domain), [direction], torch.arange(rows.start, rows.stop), first)
    return out[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["rademacher", "gaussian"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("width", "height", "first", "rank"), [(3, 5, 0, 1), (129, 2050, 0, 1), (2100, 70, 33, 3)])
@pytest.mark.parametrize("threads", [1, 3], indirect=True)
@pytest.mark.usefixtures("threads")
def test_low_rank_products_are_added_group_by_group(dtype, family, transposed, width, height, first, rank):
    """x @ b a^T of a matrix (height rows from `first`, width columns), or of its transpose."""
    n, m = (width, height) if transposed else (height, width)  # what comes out, what goes in
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, m, generator=generator).to(dtype), torch.randn(12, n, generator=generator).to(dtype)
    directions, scales = torch.tensor([4, 4, 9, 0]), torch.tensor([0.1, -0.1, 2.0, 0.0])
    rows = slice(2 * rank, 3 * rank)  # of the third matrix of a stack
    left, right = (LEFT, AT.step, first), (RIGHT, AT.step, 0)
    into, onto = (left, right) if transposed else (right, left)
    expected = y.double()
    for group in range(4):
        a = factor(LEFT, int(directions[group]), rows, first, height, family).double()
        b = factor(RIGHT, int(directions[group]), rows, 0, width, family).double()
        matrix = b.T @ a if not transposed else a.T @ b  # (in, out)
        expected[3 * group : 3 * group + 3] += float(scales[group]) * x[3 * group : 3 * group + 3].double() @ matrix
    compiled.add_products(y, x, directions, scales, family, AT, into, onto, rows)
    torch.testing.assert_close(y, expected.to(dtype), rtol=2e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-4)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["factors", "shifts", "both"])
def test_rows_are_scaled_and_shifted_group_by_group(dtype, out, given):
    x = torch.randn(6, 5, 700).to(dtype)
    factors, shifts = (torch.randn(3, 700) if given in (name, "both") else None for name in ("factors", "shifts"))
    y = x.float().view(3, -1, 700)
    y = y if factors is None else y * factors[:, None]
    y = y if shifts is None else y + shifts[:, None]
    made = compiled.scale_rows(x, factors, shifts, torch.empty(x.shape, dtype=out))
    assert torch.equal(made, y.view(x.shape).to(out))


def test_what_is_not_a_number_stays_so():
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), 3e38]])
    made = compiled.scale_rows(x, torch.ones(1, 4), None, torch.empty(1, 4, dtype=torch.bfloat16))
    assert torch.equal(made, x.bfloat16()) or torch.equal(made.isnan(), x.isnan())
    assert torch.equal(made[:, 1:], x.bfloat16()[:, 1:])
    assert bool(made[0, 0].isnan())
