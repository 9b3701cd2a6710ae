r"""FZOO: a one-sided population against the clean model, divided by its deviation (ICLR 2026).

The deviation of the losses, that of a sample, stands for eps |gradient|, so a step is normalised.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.shared import ForwardDifferences


@dataclass(frozen=True)
class Settings(MethodSettings):
    """directions: n >= 2; the paper's is 8. A step evaluates n + 1 branches. distribution: "rademacher" or "gaussian"."""

    directions: int = 8
    distribution: str = "rademacher"

    def build(self) -> Method:
        if self.directions < 2:
            raise ValueError(f"directions is {self.directions}; it must be at least 2, for their losses to have a deviation")
        return Method(Dense(self.distribution), ForwardDifferences("deviation", self.directions))


class FZOO(ZerothOrder):
    r"""Normalised zeroth-order SGD with a population of dense directions.

    .. math::
        d_i = L(w + \epsilon D_i) - L(w), \qquad
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n} \sum_i \frac{d_i}{\operatorname{std}(d)} D_i

    When relative, lr is the relative change of a weight per step, times about sqrt(n). The published step is 1 / eps
    times this one; the released code leaves that out too.
    """

    Settings = Settings
    default_lr = 0.05
