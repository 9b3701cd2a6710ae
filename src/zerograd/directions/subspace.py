"""Directions within random subspaces that last for some steps: orthonormal bases from addresses, cached until their
period ends.

    two-sided   sqrt(m n / r) U Z_r V^T / sqrt(r), with U (m x r) and V (n x r) orthonormal, Z_r (r x r) Gaussian
    one-sided   sqrt(m) P u / sqrt(r), with P (m x r) orthonormal, u (r x n) Gaussian

Both have a mean square of 1. A matrix with fewer rows or columns than the rank has dense directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from zerograd.directions.low_rank import LowRank
from zerograd.directions.source import Source
from zerograd.noise import CHANCE, LEFT, RIGHT, exact
from zerograd.spaces import Space


class Bases:
    """The orthonormal bases of all spaces in the current period."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], tuple[tuple[int, int], torch.Tensor]] = {}

    @property
    def nbytes(self) -> int:
        return sum(basis.nbytes for _, basis in self._made.values())

    def of(self, began: Source, space: Space, domain: int, rank: int, columns: int) -> torch.Tensor:
        """Orthonormal rows, as many as the rank for each matrix of a space: float32 (stack * rank, columns).

        They span the Gaussian rows of a domain, at the step at which the period began.
        """
        key = began.seed, began.step
        kept = self._made.get((space.id, domain))
        if kept is None or kept[0] != key:
            rows = began.raw_noise("gaussian", space, [0], domain, rank, columns)[0]
            kept = key, torch.cat([exact.orthonormal(part) for part in rows.view(-1, rank, columns)])
            self._made[space.id, domain] = kept
        return kept[1]


@dataclass(frozen=True)
class Subspace(LowRank):
    """Base of the two: `right_period` is the period of the bases. bases: the cache of the current period's."""

    bases: Bases = field(default_factory=Bases, compare=False)

    @property
    def nbytes(self) -> int:
        return self.bases.nbytes

    def rank_in(self, space: Space) -> int:
        return self.rank if space.is_matrix and min(space.view[1:]) >= self.rank else 0

    def factor_steps(self, step: int) -> tuple[int, int] | None:
        return None

    def basis(self, source: Source, space: Space, domain: int, columns: int) -> torch.Tensor:
        """The basis of a step's period: float32 (stack * rank, columns)."""
        began = source.at(self.right_began(source.step))
        return self.bases.of(began, space, domain, self.rank, columns)


@dataclass(frozen=True)
class TwoSided(Subspace):
    """U Z_r V^T, where U and V last."""

    def left(self, source: Source, space: Space, ids: Sequence[int]) -> torch.Tensor:
        """U Z_r of some directions, times sqrt(m n / r): float32 (ids, stack * rank, rows)."""
        stack, rows, columns = space.view
        basis = self.basis(source, space, LEFT, rows).view(stack, self.rank, rows)
        z = source.raw_noise("gaussian", space, ids, CHANCE, self.rank, self.rank).view(len(ids), stack, self.rank, self.rank)
        made = torch.zeros(len(ids), stack, self.rank, rows, dtype=torch.float32, device=basis.device)
        for j in range(self.rank):  # multiply and add in order: the same bits everywhere
            made.add_(z[..., j, None] * basis[:, j, None])
        return made.mul_(math.sqrt(rows * columns / self.rank)).view(len(ids), -1, rows)

    def right(self, source: Source, space: Space, ids: Sequence[int]) -> torch.Tensor:
        basis = self.basis(source, space, RIGHT, space.view[2])
        return basis.expand(len(ids), *basis.shape)


@dataclass(frozen=True)
class OneSided(Subspace):
    """P u, where P lasts."""

    def left(self, source: Source, space: Space, ids: Sequence[int]) -> torch.Tensor:
        basis = self.left_basis(source, space) * math.sqrt(space.view[1])
        return basis.expand(len(ids), *basis.shape)

    def left_basis(self, source: Source, space: Space) -> torch.Tensor:
        """P^T: float32 (stack * rank, rows)."""
        return self.basis(source, space, LEFT, space.view[1])

    def right(self, source: Source, space: Space, ids: Sequence[int]) -> torch.Tensor:
        return source.raw_noise("gaussian", space, ids, RIGHT, self.rank, space.view[2])
