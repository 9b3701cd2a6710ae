r"""SubZero (Yu et al., ICCV 2025, arXiv 2410.08989): directions U Z V^T in a random subspace that lasts for many steps.

Z = sqrt(m n) / r * U Z_r V^T,        w <- w - lr c Z,        U (m x r), V (n x r) orthonormal, Z_r (r x r) Gaussian

The factor keeps the mean square of a direction at 1, as the published code does. Vectors have dense directions. U and V are
made anew from their addresses every `period` steps, the same bits everywhere (`zerograd.exact`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.directions.family import Directions, Family
from zerograd.directions.subspace import Projected
from zerograd.noise import CHANCE, LEFT, RIGHT
from zerograd.optim.base import Common
from zerograd.optim.ranges import require_rank
from zerograd.optim.shared import Plain
from zerograd.spaces.weights import Slot
from zerograd.update.state import State


class TwoSided(Projected):
    """U Z_r V^T, where U and V last."""

    def left(self, directions: Directions, slot: Slot, ids: Sequence[int]) -> torch.Tensor:
        """U Z_r of the ids, times sqrt(m n / r): float32 (ids, stack * rank, rows)."""
        stack, rows, columns = slot.view
        basis = self.bases.of(directions, slot, LEFT, rows).view(stack, self.rank, rows)
        z = directions.drawn(slot, ids, CHANCE, self.rank).view(len(ids), stack, self.rank, self.rank)
        made = torch.zeros(len(ids), stack, self.rank, rows, dtype=torch.float32, device=basis.device)
        for j in range(self.rank):  # multiply and add in order: the same bits everywhere
            made.add_(z[..., j, None] * basis[:, j, None])
        return made.mul_(math.sqrt(rows * columns / self.rank)).view(len(ids), -1, rows)

    def right(self, directions: Directions, slot: Slot, ids: Sequence[int]) -> torch.Tensor:
        basis = self.bases.of(directions, slot, RIGHT, slot.view[2])
        return basis.expand(len(ids), *basis.shape)


class SubZero(Plain):
    r"""Zeroth-order SGD in random subspaces.

    .. math:: Z = \tfrac{\sqrt{m n}}{r} U Z_r V^\top, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, c\, s Z

    Args:
        rank: r, at least 1; smaller matrices have dense directions. period: steps that U and V last; the paper's
            are 1,000 and 2,000.
        params, lr, eps, directions, sides and the rest: as in `MeZO`. Directions are Gaussian.
    """

    RATE = 0.01

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        rank: int = 8,
        period: int = 1000,
        directions: int = 1,
        sides: int = 2,
        **common: Unpack[Common],
    ) -> None:
        chosen = {"rank": rank, "period": period}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        require_rank(chosen["rank"])
        return TwoSided("gaussian", chosen["rank"], chosen["period"]), State()
