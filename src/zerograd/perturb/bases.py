"""Orthonormal bases from addresses: made anew when their period begins, and kept until it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zerograd import exact
from zerograd.spaces.weights import Slot

if TYPE_CHECKING:
    from zerograd.perturb.directions import Directions


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
