r"""One-sided populations with a leave-one-out baseline (Kool et al. 2019): the estimator of LOREN (AAAI 2026).

n evaluations give n - 1 effective directions, and no clean one is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import Dense, LowRank
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.shared import Peers


@dataclass(frozen=True)
class Settings(MethodSettings):
    """directions: n >= 2. rank: of a matrix's direction; 0 is dense. distribution: "rademacher" or "gaussian"."""

    directions: int = 8
    rank: int = 0
    distribution: str = "rademacher"

    def build(self) -> Method:
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank}; it must be at least 1, or 0 for dense directions")
        draw = LowRank(self.distribution, self.rank) if self.rank else Dense(self.distribution)
        return Method(draw, Peers(directions=self.directions))


class LeaveOneOut(ZerothOrder):
    r"""Zeroth-order SGD with one-sided directions, each compared with the others.

    .. math::
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n \epsilon}
        \sum_i \Big( L(w + \epsilon D_i) - \tfrac{1}{n - 1} \sum_{j \ne i} L(w + \epsilon D_j) \Big) D_i
    """

    Settings = Settings
    default_lr = 0.05
