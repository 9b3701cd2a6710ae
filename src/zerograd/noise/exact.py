"""Products of small matrices with the same bits on every machine, whatever the order of their sums.

Operands are rounded to integers that are small enough for every product and sum to be exact in float64.
"""

from __future__ import annotations

import math

import torch

QUINTIC = 3.4445, -4.7750, 2.0315
"""Muon's coefficients (Jordan et al. 2024): singular values of 0.01 to 1 come near 1 in five iterations."""


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b for float32 or float64 (m, k) and (k, n): float64, each operand rounded to about 2^-(26 - log2(k) / 2) of its
    largest value, which is 2^-21 for k of 1,024 and 2^-18 for 65,536.

    The result does not depend on the order of sums, threads or machine.
    """
    bits = (53 - max(1, a.shape[1] - 1).bit_length()) // 2
    (left, up), (right, down) = _integers(a, bits), _integers(b, bits)
    return (left @ right) * math.ldexp(1.0, up + down - 2 * bits)


def orthonormal(a: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the rows of a, (r, n) with r <= n, by Gram-Schmidt with two projections per row: float32.

    For Gaussian rows it has the Haar distribution.
    """
    rows = torch.zeros(a.shape, dtype=torch.float64, device=a.device)
    for j in range(len(a)):
        row = _orthogonal_part(a[j].double(), rows[:j])
        if not row.any():  # a row of zeros: take the unit vector with the largest rest
            units = torch.eye(a.shape[1], dtype=torch.float64, device=a.device)
            row = max((_orthogonal_part(unit, rows[:j]) for unit in units), key=lambda unit: float(unit.square().sum()))
        rows[j] = row / torch.sqrt(matmul(row[None], row[:, None])[0, 0])
    return rows.float()


def newton_schulz(a: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix of orthonormal rows, by five iterations: float32 (r, n), r <= n."""
    x = a.double()
    norm = math.sqrt(float(matmul(x.reshape(1, -1), x.reshape(-1, 1))))
    x = x * (1 / norm) if norm > 0 else x
    for _ in range(5):
        gram = matmul(x, x.T)
        both = gram * QUINTIC[1] + matmul(gram, gram) * QUINTIC[2]
        x = x * QUINTIC[0] + matmul(both, x)
    return x.float()


def combined(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """weights^T rows, for few rows, by multiply and add in order: float32 (k, n) of (m, k) and (m, n)."""
    made = torch.zeros(weights.shape[1], rows.shape[1], dtype=torch.float32, device=rows.device)
    for weight, row in zip(weights, rows, strict=True):
        made.add_(weight[:, None] * row)
    return made


def _orthogonal_part(row: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A row minus its projection on orthonormal rows."""
    for _ in range(2):
        if len(rows):
            along = matmul(rows, row[:, None])[:, 0]
            for i in range(len(rows)):
                row = row - rows[i] * along[i]
    return row


def _integers(a: torch.Tensor, bits: int) -> tuple[torch.Tensor, int]:
    """(integers, exponent) with a about integers * 2^(exponent - bits): float64, at most 2^bits in size."""
    exponent = math.frexp(float(a.abs().max()))[1] if a.numel() else 0
    return torch.round(a.double() * math.ldexp(1.0, bits - exponent)), exponent
