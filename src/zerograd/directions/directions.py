"""Directions: z of a family at a step, as rows, factors, sums and perturbed copies of a space.

A direction is a family, a (seed, step) and an id. In a space it is scale * z; see `family`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from zerograd import noise
from zerograd.directions.family import Family
from zerograd.directions.source import Source
from zerograd.noise.reference import PerturbRows
from zerograd.spaces import Space
from zerograd.spaces.base import ALL

MODULATED = 1 << 16
"""Values of a direction that are multiplied by their modulation at a time."""


@dataclass(frozen=True)
class Draws:
    """All directions of a run."""

    family: Family
    seed: int

    def at(self, step: int) -> Directions:
        """The directions of one step."""
        return Directions(self.seed, step, self.family)


@dataclass(frozen=True)
class Directions(Source):
    """All directions of one step; an id 0, 1, ... names one."""

    family: Family

    def everywhere(self) -> Directions:
        """The same directions, in the spaces too in which this step has none."""
        return replace(self, family=replace(self.family, activity=None))

    def is_active(self, space: Space) -> bool:
        """Whether this step's directions have anything in a space."""
        return self.family.is_active(space, self.seed, self.step)

    def length(self, space: Space) -> float:
        """What multiplies raw z, or the product of raw factors, in a direction: the space's scale, and the family's
        normaliser.
        """
        return space.scale * self.family.normaliser(space)

    def dense(self, space: Space, ids: Sequence[int], rows: torch.Tensor, columns: slice = ALL) -> torch.Tensor:
        """Raw z of a dense space at some flat rows, without its modulation: float32 (ids, rows, columns)."""
        first, stop, _ = columns.indices(space.view[2])
        out = torch.empty(len(ids), len(rows), stop - first, dtype=torch.float32, device=space.device)
        noise.backend(out).fill(out, self.family.distribution, self.address(space), ids, rows, first)
        return out

    def factors(self, space: Space, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) of some directions: float32 (ids, stack * rank, rows) and (ids, stack * rank, columns)."""
        return self.family.factors(self, space, ids)

    def modulation(self, space: Space, rows: torch.Tensor, columns: slice = ALL) -> torch.Tensor | None:
        """What z is multiplied by at some flat rows: float32 (rows, columns), or None."""
        modulation = self.family.modulation
        return modulation.values(self, space, rows, columns) if modulation is not None and modulation.applies(space) else None

    def raw_rows(self, space: Space, ids: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
        """What `length` multiplies, at some rows of a vector or a single matrix: float32 (ids, rows, columns)."""
        if self.family.rank_in(space):
            a, b = self.factors(space, ids)
            z = a[:, :, rows].transpose(1, 2) @ b
        else:
            z = self.dense(space, ids, rows)
        modulation = self.modulation(space, rows)
        return z if modulation is None else z * modulation

    def z(self, space: Space, direction: int) -> torch.Tensor:
        """The whole of z, float32 of the parameter's shape."""
        z = self._raw_slice(space, direction, slice(0, space.flat_rows)) * self.family.normaliser(space)
        return z.view(space.shape)

    def estimate(self, space: Space, ids: Sequence[int], coefficients: Sequence[float]) -> Callable[[slice], torch.Tensor]:
        """The sum of some directions' z, each times its coefficient, as a function of flat rows: float32 (rows,
        columns).

        Directions are added in order by plain multiply and add, so that any chunk has the bits of the whole.
        """
        given = [(i, c) for i, c in zip(ids, coefficients, strict=True) if c != 0]
        stack, height, columns = space.view
        rank = self.family.rank_in(space)
        if rank and given:
            some = [i for i, _ in given]
            normaliser = self.family.normaliser(space)
            negative = torch.tensor([-c * normaliser for _, c in given], dtype=torch.float32, device=space.device)
            a, b = self.factors(space, some)
            left = a.view(-1, stack, rank, height) * negative[:, None, None, None]
            right = b.view(-1, stack, rank, columns)

        def at(rows: slice) -> torch.Tensor:
            total = torch.zeros(rows.stop - rows.start, columns, dtype=torch.float32, device=space.device)
            kernels, where = noise.backend(total), torch.arange(rows.start, rows.stop, device=total.device)
            if not rank:
                for i, c in given:
                    kernels.perturb([total], [c], total, None, self.family.distribution, self.address(space, i), where, 0)
            elif given:
                for e, within in by_matrix(rows, height):
                    some_left = left[:, e, :, within].flatten(0, 1).contiguous()
                    some_right = right[:, e].flatten(0, 1).contiguous()
                    part = total[e * height + within.start - rows.start :][: within.stop - within.start]
                    kernels.update_low_rank(part, None, some_left, some_right, 1.0, None, 0)
            modulation = self.modulation(space, where)
            return total if modulation is None else total * modulation

        return at

    def perturbed(
        self,
        space: Space,
        direction: int,
        coefficients: Sequence[float],
        rows: slice | None = None,
        dtype: torch.dtype | None = None,
    ) -> list[torch.Tensor]:
        """W + coefficient * scale * z for each coefficient, formed in float32 and rounded once: (rows, columns) each.

        rows: which flat rows; all by default. dtype: of the result; the parameter's own by default.
        """
        rows = rows or slice(0, space.flat_rows)
        dtype = dtype or space.dtype
        scaled = [coefficient * self.length(space) for coefficient in coefficients]
        if not self.family.rank_in(space):
            count = rows.stop - rows.start
            outs = [torch.empty(count, space.view[2], dtype=dtype, device=space.device) for _ in scaled]
            self.perturber(space, direction, rows, ALL)(outs, scaled, 0, count)
            return outs
        exact, z = space.exact(rows), self._raw_slice(space, direction, rows)
        return [(exact + z * one).to(dtype) for one in scaled]

    def perturber(self, space: Space, direction: int, rows: slice, columns: slice) -> PerturbRows:
        """A function (outs, coefficients, start, stop): outs[k] <- W + coefficients[k] z, with raw z, of rows start ..
        stop of a dense space's `rows`, and of `columns`.
        """
        if not self.family.is_modulated(space):
            return space.perturber(self.family.distribution, self.address(space, direction), rows, columns)
        first, stop, _ = columns.indices(space.view[2])
        each = max(1, MODULATED // (stop - first))

        def perturb(outs: Sequence[torch.Tensor], coefficients: Sequence[float], start: int, stop: int) -> None:
            for begin in range(start, stop, each):
                end = min(begin + each, stop)
                within = slice(rows.start + begin, rows.start + end)
                where = torch.arange(within.start, within.stop, device=space.device)
                z = self.dense(space, [direction], where, columns)[0]
                modulation = self.modulation(space, where, columns)
                z = z if modulation is None else z.mul_(modulation)
                exact = space.exact(within, columns)
                for out, coefficient in zip(outs, coefficients, strict=True):
                    out[begin - start : end - start].copy_(exact + z * coefficient)

        return perturb

    def perturbed_rows(
        self, space: Space, direction: int, coefficient: float, ids: torch.Tensor, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """W + coefficient * scale * z at the rows of a single matrix that ids name: (*ids.shape, columns).

        dtype: of the result; the parameter's own by default.
        """
        flat, dtype = ids.reshape(-1), dtype or space.dtype
        if coefficient == 0:
            return space.weight(flat).view(*ids.shape, space.view[2]).to(dtype)
        scaled = coefficient * self.length(space)
        if self.family.rank_in(space):
            a, b = self.factors(space, [direction])
            z, modulation = (a[0][:, flat].T * scaled) @ b[0], self.modulation(space, flat)
            made = (space.exact(flat) + (z if modulation is None else z * modulation)).to(dtype)
        elif self.family.is_modulated(space):
            made = (space.exact(flat) + self.raw_rows(space, [direction], flat)[0] * scaled).to(dtype)
        else:
            made = space.perturbed_rows(self.family.distribution, self.address(space, direction), scaled, flat, dtype)
        return made.view(*ids.shape, space.view[2])

    def _raw_slice(self, space: Space, direction: int, rows: slice) -> torch.Tensor:
        """What `length` multiplies, modulation included, at some flat rows: float32 (rows, columns)."""
        where = torch.arange(rows.start, rows.stop, device=space.device)
        modulation, rank = self.modulation(space, where), self.family.rank_in(space)
        if not rank:
            z = self.dense(space, [direction], where)[0]
        else:
            stack, height, columns = space.view
            a, b = self.factors(space, [direction])
            a, b = a.view(stack, rank, height), b.view(stack, rank, columns)
            parts = [a[e][:, within].T @ b[e] for e, within in by_matrix(rows, height)]
            z = parts[0] if len(parts) == 1 else torch.cat(parts)
        return z if modulation is None else z * modulation


def by_matrix(rows: slice, height: int) -> list[tuple[int, slice]]:
    """Flat rows of a stack, matrix by matrix: (its number, its rows among them)."""
    which = range(rows.start // height, -(-rows.stop // height))
    return [(e, slice(max(rows.start - e * height, 0), min(rows.stop - e * height, height))) for e in which]
