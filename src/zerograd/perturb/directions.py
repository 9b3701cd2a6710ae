"""Direction families: what z is in a tensor, and what the tensor becomes when it is perturbed by it.

A direction is a family, a (seed, step) and an id. In a slot it is the tensor `scale * z`, with z of unit variance:

    dense      z has independent entries
    low rank   z = (1 / sqrt r) sum_j a_j b_j^T for a matrix, dense for a vector
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zerograd import noise
from zerograd.noise import DENSE, LEFT, RIGHT, Address
from zerograd.spaces.weights import Slot

DISTRIBUTIONS = ("rademacher", "gaussian")


@dataclass(frozen=True)
class Family:
    """distribution: of the entries, or of the factors' entries. rank: of a matrix's direction; 0 is dense."""

    distribution: str = "rademacher"
    rank: int = 0

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution {self.distribution!r} is not one of {', '.join(DISTRIBUTIONS)}")
        if self.rank < 0:
            raise ValueError(f"rank {self.rank} is negative; 0 asks for dense directions")

    def has_factors(self, slot: Slot) -> bool:
        """Whether this family's directions of this slot are products of factors."""
        return self.rank > 0 and slot.is_matrix


@dataclass(frozen=True)
class Directions:
    """All directions of one step: `Directions(family, seed, step)` and an id name one."""

    family: Family
    seed: int
    step: int

    def address(self, slot: Slot, direction: int = 0, domain: int = DENSE) -> Address:
        return Address(self.seed, self.step, direction, slot.id, domain)

    def dense(self, slot: Slot, ids: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
        """z of a dense slot at some of its flat rows: float32 (ids, rows, columns)."""
        out = torch.empty(len(ids), len(rows), slot.view[2], device=slot.parameter.device)
        noise.backend(out).fill(out, self.family.distribution, self.address(slot), ids, rows, 0)
        return out

    def factors(self, slot: Slot, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) of the ids: float32 (ids, stack * rank, rows) and (ids, stack * rank, columns)."""
        return self.left(slot, ids), self._factor(slot, ids, RIGHT, slot.view[2])

    def left(self, slot: Slot, ids: Sequence[int]) -> torch.Tensor:
        """a of the ids: float32 (ids, stack * rank, rows)."""
        return self._factor(slot, ids, LEFT, slot.view[1])

    def right(self, slot: Slot, ids: Sequence[int]) -> torch.Tensor:
        """b of the ids: float32 (ids, stack * rank, columns)."""
        return self._factor(slot, ids, RIGHT, slot.view[2])

    def amplitude(self, slot: Slot) -> float:
        """What multiplies z, or the product of factors, in a perturbation of sign one."""
        return slot.eps * slot.scale / (math.sqrt(self.family.rank) if self.family.has_factors(slot) else 1.0)

    def at_rows(self, slot: Slot, ids: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
        """What `amplitude` multiplies, at some rows of a vector or a single matrix: float32 (ids, rows, columns)."""
        if not self.family.has_factors(slot):
            return self.dense(slot, ids, rows)
        a, b = self.factors(slot, ids)
        return a[:, :, rows].transpose(1, 2) @ b

    def z(self, slot: Slot, direction: int) -> torch.Tensor:
        """The whole of z, float32 of the parameter's shape: for tests and small tensors."""
        stack, rows, columns = slot.view
        if not self.family.has_factors(slot):
            return self.dense(slot, [direction], torch.arange(stack * rows, device=slot.parameter.device)).view(
                slot.parameter.shape
            )
        a, b = self.factors(slot, [direction])
        a, b = a.view(stack, -1, rows), b.view(stack, -1, columns)
        return (a.transpose(1, 2) @ b / math.sqrt(self.family.rank)).view(slot.parameter.shape)

    def perturbed(
        self, slot: Slot, direction: int, signs: Sequence[float], rows: slice | None = None, dtype: torch.dtype | None = None
    ) -> list[torch.Tensor]:
        """W + sign * eps * scale * z for each sign: formed in float32 and rounded once.

        rows: which flat rows of the slot's (stack * rows, columns); all of them by default.
        dtype: of the result; the parameter's own by default. Returns one (rows, columns) tensor a sign.
        """
        rows = rows or slice(0, slot.view[0] * slot.view[1])
        weight, low = slot.flat[rows], None if slot.flat_remainder is None else slot.flat_remainder[rows]
        if not self.family.has_factors(slot):
            outs = [torch.empty_like(weight, dtype=dtype or weight.dtype) for _ in signs]
            scaled, at = [sign * self.amplitude(slot) for sign in signs], torch.arange(rows.start, rows.stop, device=weight.device)
            address, kernels = self.address(slot, direction), noise.backend(weight)
            kernels.perturb(outs, scaled, weight, low, self.family.distribution, address, at, 0)
            return outs
        exact = noise.to_float(weight, low)
        product = self._product(slot, direction, rows) * self.amplitude(slot)
        return [(exact + product * sign).to(dtype or slot.parameter.dtype) for sign in signs]

    def picked(self, slot: Slot, direction: int, sign: float, ids: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The perturbed rows of a single matrix that ids name: (*ids.shape, columns), by default in the parameter's dtype."""
        flat = ids.reshape(-1)
        weight = slot.flat[flat]
        if sign == 0:
            return weight.view(*ids.shape, -1).to(dtype or weight.dtype)
        remainder = None if slot.flat_remainder is None else slot.flat_remainder[flat]
        made = torch.empty_like(weight, dtype=dtype or weight.dtype)
        amplitude = sign * self.amplitude(slot)
        if self.family.has_factors(slot):
            a, b = self.factors(slot, [direction])
            made.copy_(noise.to_float(weight, remainder) + (a[0][:, flat].T * amplitude) @ b[0])
        else:
            address, kernels = self.address(slot, direction), noise.backend(weight)
            kernels.perturb([made], [amplitude], weight, remainder, self.family.distribution, address, flat, 0)
        return made.view(*ids.shape, -1)

    def _product(self, slot: Slot, direction: int, rows: slice) -> torch.Tensor:
        """sum_j a_j b_j^T at some flat rows: float32 (rows, columns)."""
        stack, height, columns = slot.view
        a, b = self.factors(slot, [direction])
        a, b = a.view(stack, -1, height), b.view(stack, -1, columns)
        parts = []
        for e in range(rows.start // height, -(-rows.stop // height)):
            within = slice(max(rows.start - e * height, 0), min(rows.stop - e * height, height))
            parts.append(a[e][:, within].T @ b[e])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _factor(self, slot: Slot, ids: Sequence[int], domain: int, columns: int) -> torch.Tensor:
        rows = torch.arange(slot.view[0] * self.family.rank, device=slot.parameter.device)
        out = torch.empty(len(ids), len(rows), columns, device=rows.device)
        address = self.address(slot, domain=domain)
        noise.backend(out).fill(out, self.family.distribution, address, ids, rows, 0)
        return out
