r"""ZO-SGD-Cons: a step, its opposite, or none, by the batch's own loss (ZO-LLM, Zhang et al. 2024, arXiv 2402.11592).

The candidates lie along z, so that they are evaluated as any perturbation is: five evaluations, and no weight is
written for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.shared import BestOfThree


@dataclass(frozen=True)
class Settings(MethodSettings):
    """distribution: "rademacher" or "gaussian"."""

    distribution: str = "rademacher"

    def build(self) -> Method:
        return Method(Dense(self.distribution), BestOfThree())


class Conservative(ZerothOrder):
    r"""Zeroth-order SGD that never raises the loss of its batch.

    .. math:: w \leftarrow \arg\min_{u \in \{w,\ w - \gamma c D,\ w + \gamma c D\}} L(u)

    Weight decay comes on top of the chosen step, and precision "bfloat16" rounds it at random.
    """

    Settings = Settings
    default_lr = 0.02
