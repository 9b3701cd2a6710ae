r"""Per-example directions: each example sees its own low-rank ones, all in one batched forward.

A batch of B examples estimates the gradient with n B directions instead of one; with one direction an example the error
falls by (B + s) / (1 + s), s being the gradient noise scale. The forward and the one-sided baseline are EGGROLL's
(Sarkar et al. 2025, arXiv 2511.16652); dividing by the deviation is GRZO's (EMNLP Findings 2026).
"""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import LowRank
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.per_example import PerExample as Query


@dataclass(frozen=True)
class Settings(MethodSettings):
    """directions: n of each example, at least 1; with one side at least 2. sides: 2 for central differences, 1 for
    differences from the mean along the example's other directions. rank: of a matrix's direction, at least 1; vectors
    have dense directions. standardised: divide by the standard deviation of the differences; False is the plain
    estimate. distribution: "rademacher" or "gaussian".
    """

    directions: int = 1
    sides: int = 2
    rank: int = 1
    standardised: bool = True
    distribution: str = "rademacher"

    def build(self) -> Method:
        shaping = "deviation" if self.standardised else "radius"
        return Method(LowRank(self.distribution, self.rank), Query(shaping, self.directions, self.sides))


class PerExample(ZerothOrder):
    r"""Zeroth-order SGD with low-rank directions of each example's own.

    .. math::
        d_{bi} = \tfrac12 (l_b(w + \epsilon D_{bi}) - l_b(w - \epsilon D_{bi})), \qquad
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n B} \sum_{b,i} \frac{d_{bi}}{\operatorname{std}(d)} D_{bi}, \qquad
        D = s \odot \tfrac{1}{\sqrt r} \sum_j a_j b_j^\top

    When standardised and relative, lr is the relative change of a weight per step, times sqrt(n B).
    """

    Settings = Settings
    default_lr = 0.04
