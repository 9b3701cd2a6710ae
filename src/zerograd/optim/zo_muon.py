r"""ZO-Muon (2026, arXiv 2602.17155): the estimate in a subspace of rows, orthogonalised.

    G = (1 / n) sum_i c_i u_i,     c_i = (L(w + eps P u_i) - L(w)) / eps,     w <- w - lr P NS5(G)

P (m x r) is a random orthonormal basis that lasts for some steps, u_i (r x columns) Gaussian, and NS5 five Newton-Schulz iterations
with Muon's quintic (Jordan et al. 2024). Here a direction is sqrt(m / r) P u and a step sqrt(m columns / r) P NS5(G), both of mean
square 1, so that lr is a change of rms as elsewhere: the published lr is sqrt(m columns / r) times ours. Vectors and matrices
smaller than r have dense directions, and the estimate of theirs is normalised, which is what NS5 does to a single row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.directions.family import Directions, Family
from zerograd.directions.subspace import Projected
from zerograd.noise import LEFT, RIGHT, exact
from zerograd.optim.base import Common
from zerograd.optim.ranges import require_rank
from zerograd.optim.shared import Shared
from zerograd.spaces.weights import Slot
from zerograd.update import apply
from zerograd.update.apply import Step
from zerograd.update.state import State

QUINTIC = 3.4445, -4.7750, 2.0315
"""Muon's coefficients: singular values of 0.01 to 1 come near 1 in five iterations."""


class OneSided(Projected):
    """P Z_r, where P lasts."""

    def basis(self, directions: Directions, slot: Slot) -> torch.Tensor:
        """P^T: float32 (stack * rank, rows)."""
        return self.bases.of(directions, slot, LEFT, slot.view[1])

    def left(self, directions: Directions, slot: Slot, ids: Sequence[int]) -> torch.Tensor:
        basis = self.basis(directions, slot) * math.sqrt(slot.view[1])
        return basis.expand(len(ids), *basis.shape)

    def right(self, directions: Directions, slot: Slot, ids: Sequence[int]) -> torch.Tensor:
        return directions.drawn(slot, ids, RIGHT, slot.view[2])


class Orthogonalised(State):
    """Keeps nothing; orthogonalises the estimate of each matrix."""

    def update(self, slot: Slot, family: Family, seed: int, steps: Sequence[Step], group: int) -> None:
        assert isinstance(family, OneSided)
        for step in steps:
            now, multipliers = Directions(family, seed, step.number), step.multipliers[group].tolist()
            size, decay = float(step.lrs[group]) * slot.scale, step.decay(group)
            stack, rows, columns = slot.view
            if not family.has_factors(slot):
                estimate = now.sums(slot, range(len(multipliers)), multipliers)(slice(0, stack * rows))
                flat = estimate.view(1, -1)
                norm = math.sqrt(float(exact.matmul(flat, flat.T)))
                unit = flat * (size * math.sqrt(flat.numel()) / norm if norm > 0 else 0.0)
                apply.subtract(slot, unit.view(stack * rows, columns), decay, now)
                continue
            right = family.right(now, slot, range(len(multipliers))).view(-1, stack, family.rank, columns)
            estimate = torch.zeros(right.shape[1:], dtype=torch.float32, device=right.device)
            for m, u in zip(multipliers, right, strict=True):
                estimate.add_(u * m)
            made = torch.stack([orthogonal(part) for part in estimate])
            basis = family.basis(now, slot).view(stack, family.rank, rows)
            apply.subtract_products(slot, basis * (size * math.sqrt(rows * columns / family.rank)), made, decay, now)


def orthogonal(a: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """About the nearest matrix of orthonormal rows, by Newton-Schulz: float32 (r, n), r <= n; the same bits everywhere."""
    x = a.double()
    norm = math.sqrt(float(exact.matmul(x.reshape(1, -1), x.reshape(-1, 1))))
    x = x * (1 / norm) if norm > 0 else x
    for _ in range(iterations):
        gram = exact.matmul(x, x.T)
        both = gram * QUINTIC[1] + exact.matmul(gram, gram) * QUINTIC[2]
        x = x * QUINTIC[0] + exact.matmul(both, x)
    return x.float()


class ZOMuon(Shared):
    r"""Zeroth-order Muon in a random subspace of rows.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \sqrt{mn / r}\; P\, \mathrm{NS}_5(G)

    Args:
        lr: learning rate, at least 0: the rms change of a weight, relative to its tensor's rms when relative.
        rank: r, at least 1; the paper's is 64. period: steps that P lasts; the paper's is 100. directions: n; the paper's is 4.
        params, eps, sides and the rest: as in `MeZO`; the paper has one side. Directions are Gaussian.
    """

    RATE = 0.01

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        rank: int = 64,
        period: int = 100,
        directions: int = 4,
        sides: int = 1,
        **common: Unpack[Common],
    ) -> None:
        chosen = {"rank": rank, "period": period}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        require_rank(chosen["rank"])
        return OneSided("gaussian", chosen["rank"], chosen["period"]), Orthogonalised()
