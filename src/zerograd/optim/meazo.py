r"""MEAZO: MeZO with one adaptive number, since in expectation every coordinate's variance is the same (2026, arXiv
2605.03869).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, SharedSettings
from zerograd.settings.ranges import require_beta, require_zeta
from zerograd.update import GroupStep, Kept, Rule, power


class MeanSquareRule(Rule):
    """Plain SGD whose learning rate is divided by the running size of the projected gradients: v of each parameter
    group.
    """

    def __init__(self, beta: float, zeta: float) -> None:
        require_beta(beta)
        require_zeta(zeta)
        self.beta = beta
        self.zeta = zeta

    def numbers(self, groups: int) -> dict[str, torch.Tensor]:
        return {"second": torch.zeros(groups, dtype=torch.float64)}

    def advance(self, numbers: Kept, steps: Sequence[GroupStep]) -> Sequence[GroupStep]:
        return [self._normalised(numbers["second"][g], step) for g, step in enumerate(steps)]

    def _normalised(self, second: torch.Tensor, step: GroupStep) -> GroupStep:
        n, squares = len(step.coefficients), 0.0
        for c in step.coefficients:  # each is a projected gradient over n; Python's sum differs from version to version
            squares += (c * n) * (c * n)
        v = self.beta * float(second) + (1 - self.beta) * squares / n
        second.fill_(v)
        return replace(step, lr=step.lr / (math.sqrt(v / (1 - power(self.beta, step.count))) + self.zeta))


@dataclass(frozen=True)
class Settings(SharedSettings):
    """beta: 0 <= beta < 1. zeta: above 0."""

    beta: float = 0.99
    zeta: float = 1e-8

    def build(self) -> Method:
        return Method(Dense(self.distribution), self.query(), MeanSquareRule(self.beta, self.zeta))


class MEAZO(ZerothOrder):
    r"""Zeroth-order SGD, normalised by the running size of its projected gradients.

    .. math::
        v \leftarrow \beta v + (1 - \beta)\, \overline{c^2}, \qquad
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n (\sqrt{v / (1 - \beta^t)} + \zeta)} \sum_i c_i D_i

    lr is about the change of a coordinate in a step, relative to its tensor's rms when relative.
    """

    Settings = Settings
    default_lr = 5e-3
