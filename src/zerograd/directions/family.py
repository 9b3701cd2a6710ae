"""Direction families: what z is in a tensor, and what the tensor becomes when it is perturbed by it.

A direction is a family, a (seed, step) and an id. In a slot it is the tensor `scale * z`, with z of unit variance:

    dense      z has independent entries
    low rank   z = (1 / sqrt r) sum_j a_j b_j^T for a matrix, dense for a vector

either of them times a shape, entry by entry, where a method has one: a mask, a preconditioner, signs of an example's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from zerograd import noise
from zerograd.noise import DENSE, LEFT, RIGHT, Address
from zerograd.noise.reference import PerturbRows
from zerograd.spaces.weights import Slot

SHAPED = 1 << 16
"""Values of a direction that are multiplied by their shape at a time."""

DISTRIBUTIONS = ("rademacher", "gaussian")


class Shape(Protocol):
    """What the entries of a slot's directions are multiplied by. It must give the same bits in the evaluation and in the update."""

    def applies(self, slot: Slot) -> bool:
        """Whether this slot's directions have a shape other than ones."""

    def values(self, directions: Directions, slot: Slot, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        """Of some flat rows of a slot, and some of its columns: float32 (rows, columns)."""


@dataclass(frozen=True)
class Family:
    """distribution: of the entries, or of the factors' entries. rank: of a matrix's direction; 0 is dense. period: steps that
    right factors last. shape: what entries are multiplied by, if anything.
    """

    distribution: str = "rademacher"
    rank: int = 0
    period: int = 1
    shape: Shape | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution {self.distribution!r} is not one of {', '.join(DISTRIBUTIONS)}")
        if self.rank < 0:
            raise ValueError(f"rank {self.rank} is negative; 0 asks for dense directions")
        if self.period < 1:
            raise ValueError(f"period is {self.period}; it must be at least 1")

    @property
    def bytes(self) -> int:
        """What is kept for directions beside the weights and State."""
        return 0

    @property
    def is_drawn_in_kernels(self) -> bool:
        """Whether factors are noise as it comes, which kernels draw where they use it."""
        return True

    def begin(self, slots: Sequence[Slot]) -> None:
        """Hear of all slots before the first step."""

    def has_factors(self, slot: Slot) -> bool:
        """Whether this family's directions of this slot are products of factors."""
        return self.rank > 0 and slot.is_matrix

    def has_shape(self, slot: Slot) -> bool:
        """Whether this family's directions of this slot are multiplied by a shape."""
        return self.shape is not None and self.shape.applies(slot)

    def touches(self, slot: Slot, seed: int, step: int) -> bool:
        """Whether a step's directions have anything in a slot."""
        return True

    def unit(self, slot: Slot) -> float:
        """What products of factors are multiplied by for a mean square of 1."""
        return 1 / math.sqrt(self.rank) if self.has_factors(slot) else 1.0

    def left(self, directions: Directions, slot: Slot, ids: Sequence[int]) -> torch.Tensor:
        """a of the ids: float32 (ids, stack * rank, rows)."""
        return directions.drawn(slot, ids, LEFT, slot.view[1])

    def right(self, directions: Directions, slot: Slot, ids: Sequence[int]) -> torch.Tensor:
        """b of the ids: float32 (ids, stack * rank, columns)."""
        return directions.at(self.right_step(directions.step)).drawn(slot, ids, RIGHT, slot.view[2])

    def right_step(self, step: int) -> int:
        """The step whose noise right factors are."""
        return step - step % self.period


@dataclass(frozen=True)
class Directions:
    """All directions of one step: `Directions(family, seed, step)` and an id name one."""

    family: Family
    seed: int
    step: int

    def address(self, slot: Slot, direction: int = 0, domain: int = DENSE) -> Address:
        return Address(self.seed, self.step, direction, slot.id, domain)

    def at(self, step: int) -> Directions:
        """Those of another step."""
        return replace(self, step=step)

    def dense(self, slot: Slot, ids: Sequence[int], rows: torch.Tensor, columns: slice = slice(None)) -> torch.Tensor:
        """z of a dense slot at some of its flat rows, without its shape: float32 (ids, rows, columns)."""
        first, stop, _ = columns.indices(slot.view[2])
        out = torch.empty(len(ids), len(rows), stop - first, dtype=torch.float32, device=slot.parameter.device)
        noise.backend(out).fill(out, self.family.distribution, self.address(slot), ids, rows, first)
        return out

    def factors(self, slot: Slot, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) of the ids: float32 (ids, stack * rank, rows) and (ids, stack * rank, columns)."""
        return self.left(slot, ids), self.right(slot, ids)

    def left(self, slot: Slot, ids: Sequence[int]) -> torch.Tensor:
        """a of the ids: float32 (ids, stack * rank, rows)."""
        return self.family.left(self, slot, ids)

    def right(self, slot: Slot, ids: Sequence[int]) -> torch.Tensor:
        """b of the ids: float32 (ids, stack * rank, columns)."""
        return self.family.right(self, slot, ids)

    def shape(self, slot: Slot, rows: torch.Tensor, columns: slice = slice(None)) -> torch.Tensor | None:
        """What z is multiplied by at some flat rows: float32 (rows, columns), or None."""
        shape = self.family.shape
        return shape.values(self, slot, rows, columns) if shape is not None and shape.applies(slot) else None

    def amplitude(self, slot: Slot) -> float:
        """What multiplies z, or the product of factors, in a perturbation of sign one."""
        return slot.eps * slot.scale * self.family.unit(slot)

    def at_rows(self, slot: Slot, ids: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
        """What `amplitude` multiplies, at some rows of a vector or a single matrix: float32 (ids, rows, columns)."""
        if self.family.has_factors(slot):
            a, b = self.factors(slot, ids)
            z = a[:, :, rows].transpose(1, 2) @ b
        else:
            z = self.dense(slot, ids, rows)
        shape = self.shape(slot, rows)
        return z if shape is None else z * shape

    def z(self, slot: Slot, direction: int) -> torch.Tensor:
        """The whole of z, float32 of the parameter's shape: for tests and small tensors."""
        stack, rows, _ = slot.view
        z = self._z(slot, direction, slice(0, stack * rows)) * self.family.unit(slot)
        return z.view(slot.parameter.shape)

    def sums(self, slot: Slot, ids: Sequence[int], multipliers: Sequence[float]) -> Callable[[slice], torch.Tensor]:
        """The sum of the ids' z, each times its multiplier: a function that gives it for some flat rows, float32 (rows, columns).

        Directions are added in order by plain multiply and add, so that any chunk is that of the whole, bit for bit.
        """
        given = [(i, m) for i, m in zip(ids, multipliers, strict=True) if m != 0]
        columns, kernels = slot.view[2], noise.backend(slot.flat)
        if self.family.has_factors(slot) and given:
            some = [i for i, _ in given]
            factor = torch.tensor([-m * self.family.unit(slot) for _, m in given], dtype=torch.float32, device=slot.flat.device)
            stack, height, rank = slot.view[0], slot.view[1], self.family.rank
            right = self.right(slot, some).view(-1, stack, rank, columns)
            left = self.left(slot, some).view(-1, stack, rank, height) * factor[:, None, None, None]

        def at(rows: slice) -> torch.Tensor:
            total = torch.zeros(rows.stop - rows.start, columns, dtype=torch.float32, device=slot.flat.device)
            where = torch.arange(rows.start, rows.stop, device=total.device)
            if not self.family.has_factors(slot):
                for i, m in given:
                    kernels.perturb([total], [m], total, None, self.family.distribution, self.address(slot, i), where, 0)
            elif given:
                for e, within in _by_matrix(rows, height):
                    a, b = left[:, e, :, within].flatten(0, 1).contiguous(), right[:, e].flatten(0, 1).contiguous()
                    part = total[e * height + within.start - rows.start :][: within.stop - within.start]
                    kernels.update_low_rank(part, None, a, b, 1.0, None, 0)
            shape = self.shape(slot, where)
            return total if shape is None else total * shape

        return at

    def perturbed(
        self, slot: Slot, direction: int, signs: Sequence[float], rows: slice | None = None, dtype: torch.dtype | None = None
    ) -> list[torch.Tensor]:
        """W + sign * eps * scale * z for each sign: formed in float32 and rounded once.

        rows: which flat rows of the slot's (stack * rows, columns); all of them by default.
        dtype: of the result; the parameter's own by default. Returns one (rows, columns) tensor a sign.
        """
        rows = rows or slice(0, slot.view[0] * slot.view[1])
        dtype = dtype or slot.parameter.dtype
        if not self.family.has_factors(slot):
            outs = [torch.empty_like(slot.flat[rows], dtype=dtype) for _ in signs]
            scaled = [sign * self.amplitude(slot) for sign in signs]
            self.perturber(slot, direction, rows, slice(None))(outs, scaled, 0, rows.stop - rows.start)
            return outs
        exact = noise.to_float(slot.flat[rows], None if slot.flat_remainder is None else slot.flat_remainder[rows])
        product = self._z(slot, direction, rows) * self.amplitude(slot)
        return [(exact + product * sign).to(dtype) for sign in signs]

    def perturber(self, slot: Slot, direction: int, rows: slice, columns: slice) -> PerturbRows:
        """A function (outs, coefficients, start, stop): outs[k] <- W + coefficients[k] z, of rows start .. stop of a dense slot's
        `rows`, and of `columns`.
        """
        weight, low = slot.flat[rows, columns], None if slot.flat_remainder is None else slot.flat_remainder[rows, columns]
        kernels, first = noise.backend(weight), columns.start or 0
        if not self.family.has_shape(slot):
            address = self.address(slot, direction)
            made: PerturbRows = kernels.perturber(weight, low, self.family.distribution, address, rows.start, first)
            return made

        def perturb_rows(outs: Sequence[torch.Tensor], coefficients: Sequence[float], start: int, stop: int) -> None:
            each = max(1, SHAPED // weight.shape[1])
            for first in range(start, stop, each):
                last = min(first + each, stop)
                where = torch.arange(rows.start + first, rows.start + last, device=weight.device)
                z = self.dense(slot, [direction], where, columns)[0]
                shape = self.shape(slot, where, columns)
                z = z if shape is None else z.mul_(shape)
                exact = noise.to_float(weight[first:last], None if low is None else low[first:last])
                for out, coefficient in zip(outs, coefficients, strict=True):
                    out[first - start : last - start].copy_(exact + z * coefficient)

        return perturb_rows

    def picked(self, slot: Slot, direction: int, sign: float, ids: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The perturbed rows of a single matrix that ids name: (*ids.shape, columns), by default in the parameter's dtype."""
        flat = ids.reshape(-1)
        weight = slot.flat[flat]
        if sign == 0:
            return weight.view(*ids.shape, slot.view[2]).to(dtype or weight.dtype)
        remainder = None if slot.flat_remainder is None else slot.flat_remainder[flat]
        made = torch.empty_like(weight, dtype=dtype or weight.dtype)
        amplitude = sign * self.amplitude(slot)
        if self.family.has_factors(slot):
            a, b = self.factors(slot, [direction])
            z, shape = (a[0][:, flat].T * amplitude) @ b[0], self.shape(slot, flat)
            made.copy_(noise.to_float(weight, remainder) + (z if shape is None else z * shape))
        elif self.family.has_shape(slot):
            made.copy_(noise.to_float(weight, remainder) + self.at_rows(slot, [direction], flat)[0] * amplitude)
        else:
            address, kernels = self.address(slot, direction), noise.backend(weight)
            kernels.perturb([made], [amplitude], weight, remainder, self.family.distribution, address, flat, 0)
        return made.view(*ids.shape, slot.view[2])

    def drawn(self, slot: Slot, ids: Sequence[int], domain: int, columns: int) -> torch.Tensor:
        """Noise as it comes, as many rows as a slot's factors have: float32 (ids, stack * rank, columns)."""
        rows = torch.arange(slot.view[0] * self.family.rank, device=slot.parameter.device)
        out = torch.empty(len(ids), len(rows), columns, dtype=torch.float32, device=rows.device)
        address = self.address(slot, domain=domain)
        noise.backend(out).fill(out, self.family.distribution, address, ids, rows, 0)
        return out

    def _z(self, slot: Slot, direction: int, rows: slice) -> torch.Tensor:
        """What `amplitude` multiplies, at some flat rows: float32 (rows, columns)."""
        where = torch.arange(rows.start, rows.stop, device=slot.parameter.device)
        shape = self.shape(slot, where)
        if not self.family.has_factors(slot):
            z = self.dense(slot, [direction], where)[0]
        else:
            stack, height, columns = slot.view
            a, b = self.factors(slot, [direction])
            a, b = a.view(stack, -1, height), b.view(stack, -1, columns)
            parts = [a[e][:, within].T @ b[e] for e, within in _by_matrix(rows, height)]
            z = parts[0] if len(parts) == 1 else torch.cat(parts)
        return z if shape is None else z * shape


def _by_matrix(rows: slice, height: int) -> list[tuple[int, slice]]:
    """Flat rows of a stack, matrix by matrix: (its number, its rows among them)."""
    which = range(rows.start // height, -(-rows.stop // height))
    return [(e, slice(max(rows.start - e * height, 0), min(rows.stop - e * height, height))) for e in which]
