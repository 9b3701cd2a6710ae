"""Orthonormal bases from addresses: made anew when their period begins, and kept until it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from zerograd.directions.family import Directions, Family
from zerograd.noise import exact
from zerograd.spaces.weights import Slot


class Bases:
    """Those of the slots' current period."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], tuple[tuple[int, int], torch.Tensor]] = {}

    @property
    def bytes(self) -> int:
        return sum(basis.nbytes for _, basis in self._made.values())

    def of(self, directions: Directions, slot: Slot, domain: int, columns: int) -> torch.Tensor:
        """Orthonormal rows, as many as the family's rank for each matrix of a slot: float32 (stack * rank, columns).

        They are those of Gaussian rows of a domain, at the step at which the family's period began.
        """
        began = directions.family.right_step(directions.step)
        kept = self._made.get((slot.id, domain))
        if kept is None or kept[0] != (directions.seed, began):
            drawn = directions.at(began).drawn(slot, [0], domain, columns)[0]
            basis = torch.cat([exact.orthonormal(part) for part in drawn.view(-1, directions.family.rank, columns)])
            kept = self._made[slot.id, domain] = (directions.seed, began), basis
        return kept[1]


@dataclass(frozen=True)
class Projected(Family):
    """Directions within bases. bases: of the slots, those of this period. A matrix with fewer rows or columns than the rank has
    dense directions.
    """

    bases: Bases = field(default_factory=Bases, compare=False)

    @property
    def bytes(self) -> int:
        return self.bases.bytes

    def has_factors(self, slot: Slot) -> bool:
        return slot.is_matrix and min(slot.view[1:]) >= self.rank

    @property
    def is_drawn_in_kernels(self) -> bool:
        return False
