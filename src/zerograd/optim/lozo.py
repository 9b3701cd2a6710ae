"""LOZO and LOZO-M: directions U V^T of low rank, V kept for some steps (Chen et al., ICLR 2025, arXiv 2410.07698)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zerograd.directions import LowRank
from zerograd.noise import exact
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings, SharedSettings
from zerograd.queries.shared import shared
from zerograd.settings.ranges import require_beta
from zerograd.spaces import Space
from zerograd.update import GroupStep, Kept, Rule, Target


@dataclass(frozen=True)
class Settings(SharedSettings):
    """rank: r >= 1; the paper's are 1 to 8. period: steps that V lasts, at least 1; the paper's are 50 and 100. Directions
    are Gaussian in the paper.
    """

    rank: int = 2
    period: int = 50
    distribution: str = "gaussian"

    def build(self) -> Method:
        return Method(LowRank(self.distribution, self.rank, self.period), self.query())


class LOZO(ZerothOrder):
    r"""Zeroth-order SGD along low-rank directions whose right factors last.

    .. math:: Z = U V^\top / \sqrt r, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, c\, s Z

    Z has mean square 1: with the paper's radius times sqrt(r), c Z is the paper's c U V^T / r. Vectors have dense
    directions.
    """

    Settings = Settings
    default_lr = 0.01


class FactorMomentum(Rule):
    """M of each matrix, float32 (stack, rank, rows), in the left factors; m of each vector, or stack of them, of its
    own shape.
    """

    def __init__(self, draw: LowRank, beta: float) -> None:
        require_beta(beta)
        self.draw = draw
        self.beta = beta

    def init(self, space: Space) -> dict[str, torch.Tensor]:
        stack, rows, _ = space.view
        factor = torch.zeros(stack, self.draw.rank, rows, dtype=torch.float32, device=space.device)
        return {"momentum": factor if space.is_matrix else space.zeros()}

    def update(self, target: Target, kept: Kept, steps: Sequence[GroupStep]) -> None:
        m, space = kept["momentum"], target.space
        for step in steps:
            now = target.directions(step.number)
            if not space.is_matrix:
                estimate = now.estimate(space, [0], step.coefficients)(slice(0, len(m)))
                m.mul_(self.beta).add_(estimate.mul_(1 - self.beta))
                target.subtract(m, step)
                continue
            right = self.draw.right(now, space, [0]).view(*m.shape[:2], -1)
            if step.previous >= 0 and self.draw.right_began(step.previous) != self.draw.right_began(step.number):
                old = self.draw.right(target.directions(step.previous), space, [0]).view(right.shape)
                for e, factor in enumerate(m):
                    turn = (exact.matmul(old[e], right[e].T) / space.view[2]).float()
                    factor.copy_(exact.combined(turn, factor))
            left = self.draw.left(now, space, [0]).view(m.shape) * (step.coefficients[0] * self.draw.normaliser(space))
            m.mul_(self.beta).add_(left.mul_(1 - self.beta))
            target.subtract_products(m, right, step)


@dataclass(frozen=True)
class MomentumSettings(MethodSettings):
    """beta: 0 <= beta < 1. rank, period, sides, distribution: as in LOZO; there is one direction."""

    rank: int = 2
    period: int = 50
    beta: float = 0.9
    sides: int = 2
    distribution: str = "gaussian"

    def build(self) -> Method:
        draw = LowRank(self.distribution, self.rank, self.period)
        return Method(draw, shared(1, self.sides), FactorMomentum(draw, self.beta))


class LOZOM(ZerothOrder):
    r"""LOZO with momentum in the left factors: its memory is that of a factor.

    .. math::
        M \leftarrow \beta M + (1 - \beta) c U / \sqrt r, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma s M V^\top, \qquad
        M \leftarrow M (V_{old}^\top V_{new}) / n \text{ when } V \text{ changes}
    """

    Settings = MomentumSettings
    default_lr = 0.02
