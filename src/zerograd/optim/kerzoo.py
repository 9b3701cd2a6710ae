r"""KerZOO: MeZO whose radius is drawn at every step, weighted so that the low-order bias cancels (2025)."""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.shared import RandomRadius


@dataclass(frozen=True)
class Settings(MethodSettings):
    """distribution: "rademacher" or "gaussian"."""

    distribution: str = "rademacher"

    def build(self) -> Method:
        return Method(Dense(self.distribution), RandomRadius())


class KerZOO(ZerothOrder):
    r"""Zeroth-order SGD with kernel-weighted random radii; eps is the largest radius.

    .. math::
        r \sim U[-1, 1], \qquad K(r) = \tfrac{15}{4} r (5 - 7 r^2), \qquad
        w \leftarrow (1 - \gamma \lambda) w - \gamma \frac{K(r)}{2 \epsilon} (L(w + \epsilon r D) - L(w - \epsilon r D)) D

    E[r K(r)] = 1 and E[r^3 K(r)] = 0: the first order is unbiased, and the third vanishes.
    """

    Settings = Settings
    default_lr = 0.004
