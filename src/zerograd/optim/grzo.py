r"""GRZO: one dense matrix for the batch, and each example's own signs on its rows and columns (EMNLP Findings 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import LowRank
from zerograd.directions.modulation import CommonMatrix
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.per_example import PerExample as Query


@dataclass(frozen=True)
class Settings(MethodSettings):
    """standardised: divide by the standard deviation of the differences; False is the plain estimate."""

    standardised: bool = True

    def build(self) -> Method:
        shaping = "deviation" if self.standardised else "radius"
        return Method(LowRank("rademacher", 1, modulation=CommonMatrix()), Query(shaping))


class GRZO(ZerothOrder):
    r"""Zeroth-order SGD with a common dense matrix under each example's own signs.

    .. math::
        D_b = s \odot U \odot (r_b s_b^\top), \qquad
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{B} \sum_b \frac{d_b}{\operatorname{std}(d)} D_b

    U is Gaussian and drawn once a step, r_b and s_b are signs; a vector has dense signs of each example's own. The
    published step is 1 / (2 eps) times this one.
    """

    Settings = Settings
    default_lr = 0.04
