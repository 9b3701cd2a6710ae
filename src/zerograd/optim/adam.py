r"""ZO-Adam: Adam's moments of the zeroth-order estimate (Chen et al. 2019, "ZO-AdaMM"; ZO-Adam in Zhang et al. 2024).

With one Rademacher direction g^2 is the same for every coordinate, and so is v: with b1 = 0 `MEAZO` is the same, with
one number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.optim.ranges import require_moments
from zerograd.queries.shared import shared
from zerograd.spaces import Space
from zerograd.update import Chunk, Elementwise, GroupStep, Kept, power


class AdamRule(Elementwise):
    """m and v, float32, two numbers a weight."""

    def __init__(self, betas: tuple[float, float], zeta: float) -> None:
        require_moments(betas, zeta)
        self.betas = betas
        self.zeta = zeta

    def init(self, space: Space) -> dict[str, torch.Tensor]:
        return {"first": space.zeros(), "second": space.zeros()}

    def change(self, chunk: Chunk, kept: Kept, step: GroupStep) -> torch.Tensor:
        (b1, b2), g = self.betas, chunk.estimate()
        v = kept["second"].mul_(b2).add_((g * g).mul_(1 - b2))
        m = kept["first"].mul_(b1).add_(g.mul_(1 - b1))
        c1, c2 = (1 / (1 - power(beta, step.count)) for beta in self.betas)
        return (m * c1).div_((v * c2).sqrt_().add_(self.zeta))


@dataclass(frozen=True)
class Settings(MethodSettings):
    """betas: decay of the moments, each 0 <= beta < 1. zeta: above 0. Both defaults are Adam's. directions, sides,
    distribution: as in `mezo`.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    zeta: float = 1e-8
    directions: int = 1
    sides: int = 2
    distribution: str = "rademacher"

    def build(self) -> Method:
        return Method(Dense(self.distribution), shared(self.directions, self.sides), AdamRule(self.betas, self.zeta))


class Adam(ZerothOrder):
    r"""Adam on the zeroth-order estimate g.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
        w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \odot \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \zeta}

    lr is about the change of a coordinate in a step, relative to its tensor's rms when relative.
    """

    Settings = Settings
    default_lr = 5e-3
