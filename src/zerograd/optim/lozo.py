r"""LOZO and LOZO-M (Chen et al., ICLR 2025, arXiv 2410.07698): directions U V^T of low rank, V kept for some steps.

    LOZO      w <- w - lr c U V^T / r
    LOZO-M    M <- beta M + (1 - beta) c U,     w <- w - lr M V^T;     when V changes, M <- M (V_old^T V_new) / n

Here a direction is Z = U V^T / sqrt(r), of mean square 1: with eps' = sqrt(r) eps, c' Z is c U V^T / r. Vectors have dense
directions, and LOZO-M a momentum of their own size. M stands for the left factor of the estimate, c' U / sqrt(r).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.directions.family import Directions, Family
from zerograd.noise import exact
from zerograd.optim.base import Common
from zerograd.optim.ranges import require_rank
from zerograd.optim.shared import Plain, Shared
from zerograd.spaces.weights import Slot
from zerograd.update import apply
from zerograd.update.apply import Step
from zerograd.update.state import Resolved, State


class LOZO(Plain):
    r"""Zeroth-order SGD along low-rank directions whose right factors last.

    .. math:: Z = U V^\top / \sqrt r, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, c\, s Z

    Args:
        rank: r, at least 1; the paper's are 1 to 8. period: steps that V lasts, at least 1; the paper's are 50 and 100.
        params, lr, eps, directions, sides, distribution and the rest: as in `MeZO`; the paper's are Gaussian.
    """

    RATE = 0.01

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        rank: int = 2,
        period: int = 50,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "gaussian",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution, "rank": rank, "period": period}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        require_rank(chosen["rank"])
        return Family(**chosen), State()


class FactorMomentum(State):
    """M of each matrix, float32 (stack, rank, rows); m of each vector, or stack of them."""

    def __init__(self, beta: float, rank: int) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta}; it must be at least 0 and below 1")
        super().__init__()
        self.beta = beta
        self.rank = rank

    def begin(self, slots: Sequence[Slot], groups: int) -> None:
        for slot in slots:
            stack, rows, _ = slot.view
            shape = (stack, self.rank, rows) if slot.is_matrix else slot.flat.shape
            self.tensors[slot.name] = torch.zeros(shape, dtype=torch.float32, device=slot.flat.device)
        self.tensors["last step"] = torch.zeros(1, dtype=torch.int64)

    def resolved(self, steps: Sequence[Step], seed: int) -> list[Step]:
        """The steps, with the number of the one before each."""
        found: list[Step] = []
        for step in steps:
            found.append(Resolved.of(step, int(self.tensors["last step"])))
            self.tensors["last step"].fill_(step.number)
        return found

    def update(self, slot: Slot, family: Family, seed: int, steps: Sequence[Step], group: int) -> None:
        held = self.tensors[slot.name]
        for step in steps:
            now = Directions(family, seed, step.number)
            lr, decay = float(step.lrs[group]), step.decay(group)
            if not slot.is_matrix:
                estimate = now.sums(slot, [0], step.multipliers[group].tolist())(slice(0, len(held)))
                held.mul_(self.beta).add_(estimate.mul_(1 - self.beta))
                apply.subtract(slot, held * (lr * slot.scale), decay, now)
                continue
            stack, rank = held.shape[:2]
            right = now.right(slot, [0]).view(stack, rank, -1)
            assert isinstance(step, Resolved)
            if family.right_step(step.kept) != family.right_step(step.number):
                old = Directions(family, seed, step.kept).right(slot, [0]).view(stack, rank, -1)
                for e in range(stack):
                    along = exact.matmul(old[e], right[e].T) / slot.view[2]
                    held[e] = _combined(held[e], along.float())
            left = now.left(slot, [0]).view(held.shape) * (float(step.multipliers[group, 0]) * family.unit(slot))
            held.mul_(self.beta).add_(left.mul_(1 - self.beta))
            apply.subtract_products(slot, held * (lr * slot.scale), right, decay, now)


def _combined(rows: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """along^T rows, by multiply and add in order: (rank, n)."""
    made = torch.zeros_like(rows)
    for j, row in enumerate(rows):
        made.add_(along[j, :, None] * row)
    return made


class LOZOM(Shared):
    r"""LOZO with momentum in the left factors: its memory is that of a factor.

    .. math:: M \leftarrow \beta M + (1 - \beta) c U / \sqrt r, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma s M V^\top

    Args:
        beta: 0 <= beta < 1.
        params, lr, eps, rank, period, sides, distribution and the rest: as in `LOZO`; there is one direction.
    """

    RATE = 0.02

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        rank: int = 2,
        period: int = 50,
        beta: float = 0.9,
        sides: int = 2,
        distribution: str = "gaussian",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution, "rank": rank, "period": period, "beta": beta}
        super().__init__(params, chosen, lr=lr, eps=eps, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        family, _ = LOZO.parts(**{name: value for name, value in chosen.items() if name != "beta"})
        return family, FactorMomentum(chosen["beta"], family.rank)
