r"""Forward gradient: the exact derivative along a random direction, by forward-mode AD (Baydin et al. 2022, arXiv
2202.08587).

It is the limit of a two-point estimate as eps goes to 0: the noise-free bound of a family of directions. One dual
forward, counted as three evaluations, with attention by its plain formula; z of all weights is held while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.shared import Derivative


@dataclass(frozen=True)
class Settings(MethodSettings):
    """distribution: "rademacher" or "gaussian"."""

    distribution: str = "rademacher"

    def build(self) -> Method:
        return Method(Dense(self.distribution), Derivative())


class ForwardGradient(ZerothOrder):
    r"""SGD along random directions with their exact derivatives.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma\, (\nabla L \cdot D)\, D

    There is no eps and no self-check: nothing is perturbed. It needs step(objective, batch).
    """

    Settings = Settings
    default_lr = 0.01
