r"""ZO-Adam: Adam's moments of the zeroth-order estimate (Chen et al. 2019, "ZO-AdaMM"; ZO-Adam in Zhang et al. 2024).

With one Rademacher direction g^2 is the same for every coordinate, and so is v: with b1 = 0 `MEAZO` is the same, with
one number.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, SharedSettings
from zerograd.update import AdamRule


@dataclass(frozen=True)
class Settings(SharedSettings):
    """betas: decay of the moments, each 0 <= beta < 1. zeta: above 0. Both defaults are Adam's."""

    betas: tuple[float, float] = (0.9, 0.999)
    zeta: float = 1e-8

    def build(self) -> Method:
        return Method(Dense(self.distribution), self.query(), AdamRule(self.betas, self.zeta))


class Adam(ZerothOrder):
    r"""Adam on the zeroth-order estimate g.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
        w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \odot \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \zeta}

    lr is about the change of a coordinate in a step, relative to its tensor's rms when relative.
    """

    Settings = Settings
    default_lr = 5e-3
