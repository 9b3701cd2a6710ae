r"""SubZero: directions in a random subspace that lasts for many steps (Yu et al., ICCV 2025, arXiv 2410.08989)."""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions.subspace import TwoSided
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.shared import shared


@dataclass(frozen=True)
class Settings(MethodSettings):
    """rank: r >= 1; matrices with fewer rows or columns have dense directions. period: steps that U and V last; the
    paper's are 1,000 and 2,000. directions, sides: as in MeZO. Directions are Gaussian.
    """

    rank: int = 8
    period: int = 1000
    directions: int = 1
    sides: int = 2

    def build(self) -> Method:
        return Method(TwoSided("gaussian", self.rank, self.period), shared(self.directions, self.sides))


class SubZero(ZerothOrder):
    r"""Zeroth-order SGD in random subspaces.

    .. math:: Z = \tfrac{\sqrt{m n}}{r} U Z_r V^\top, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, c\, s Z

    U (m x r) and V (n x r) are orthonormal, Z_r (r x r) Gaussian. The factor keeps the mean square of a direction at 1,
    as the published code does.
    """

    Settings = Settings
    default_lr = 0.01
