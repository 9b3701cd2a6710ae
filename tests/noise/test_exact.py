"""Products and orthonormal rows that are the same bits in any order and on any threads."""

from __future__ import annotations

import pytest
import torch

from zerograd.noise import exact


@pytest.mark.parametrize(("m", "k", "n"), [(3, 1, 4), (5, 64, 7), (200, 1000, 90), (4, 1 << 16, 4)])
@pytest.mark.parametrize("unit", [1.0, 1e-20, 3e15])
@pytest.mark.parametrize("cancels", [True, False])  # sums that do not are the largest
def test_an_exact_product_is_that_of_float64_and_the_same_bits_for_any_order_and_threads(
    m: int, k: int, n: int, unit: float, cancels: bool
) -> None:
    generator = torch.Generator().manual_seed(8)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) if cancels else 1 - torch.rand(shape, generator=generator) / 8

    a, b = values(m, k) * unit, values(k, n)
    found = exact.matmul(a, b)
    sizes = a.double().norm(dim=1)[:, None] * b.double().norm(dim=0)
    assert found.dtype == torch.float64
    assert float(((found - a.double() @ b.double()) / sizes).abs().max()) < 1e-6
    order = torch.randperm(k, generator=generator)
    assert torch.equal(exact.matmul(a[:, order], b[order]), found)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(exact.matmul(a, b), found)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("r", "n"), [(1, 1), (2, 3), (32, 32), (8, 3000), (64, 256)])
def test_orthonormal_rows_are_orthonormal_and_span_what_they_were_made_of(r: int, n: int) -> None:
    a = torch.randn(r, n, generator=torch.Generator().manual_seed(9))
    rows = exact.orthonormal(a).double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(r).double(), rtol=0, atol=1e-6)
    made_again = (a.double() @ rows.T) @ rows
    torch.testing.assert_close(made_again, a.double(), rtol=0, atol=1e-5)


def test_rows_that_are_drawn_as_zero_have_a_basis_too() -> None:
    for zero in (torch.zeros(1, 1), torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])):
        rows = exact.orthonormal(zero)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(zero)))


def test_orthonormal_rows_survive_rows_that_nearly_depend_on_each_other() -> None:
    a = torch.randn(3, 50, generator=torch.Generator().manual_seed(9))
    a[1] = a[0] + 1e-3 * a[1]
    rows = exact.orthonormal(a).double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5), (4, 4), (8, 100)])
def test_newton_schulz_brings_singular_values_near_1_and_keeps_singular_vectors(shape: tuple[int, int]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    left, _, right = torch.linalg.svd(given.double(), full_matrices=False)
    found = exact.newton_schulz(given).double()
    inner = left.T @ found @ right.T
    assert (inner - torch.diag(inner.diag())).abs().max() < 1e-3
    assert ((inner.diag() > 0.6) & (inner.diag() < 1.3)).all()
    assert not exact.newton_schulz(torch.zeros(shape)).any()


def test_rows_are_combined_as_float64_combines_them() -> None:
    weights, rows = torch.randn(3, 2), torch.randn(3, 50)
    torch.testing.assert_close(exact.combined(weights, rows), (weights.double().T @ rows.double()).float())
