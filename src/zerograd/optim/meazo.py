r"""MEAZO (2026, arXiv 2605.03869): MeZO with one adaptive number, since in expectation every coordinate's variance is the same.

v <- beta v + (1 - beta) mean(c_i^2),        w <- w - lr (1 / n) sum_i c_i z_i / (sqrt(v / (1 - beta^t)) + zeta),        c = d / eps
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn

from zerograd.directions.family import Family
from zerograd.optim.base import Common
from zerograd.optim.ranges import require_zeta
from zerograd.optim.shared import Shared
from zerograd.spaces.weights import Slot
from zerograd.update.apply import Step
from zerograd.update.state import State


class MEAZOState(State):
    """v of each group of parameters, and the power of beta."""

    def __init__(self, beta: float, zeta: float) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta}; it must be at least 0 and below 1")
        require_zeta(zeta)
        super().__init__()
        self.beta = beta
        self.zeta = zeta

    def begin(self, slots: Sequence[Slot], groups: int) -> None:
        self.tensors["second"] = torch.zeros(groups, dtype=torch.float64)
        self.tensors["power"] = torch.ones(1, dtype=torch.float64)

    def resolved(self, steps: Sequence[Step], seed: int) -> list[Step]:
        """The steps with what is subtracted for multipliers."""
        found = []
        for step in steps:
            power = float(self.tensors["power"].mul_(self.beta))
            scaled = np.empty_like(step.multipliers)
            for g, row in enumerate(step.multipliers):
                squares = 0.0
                for m in row:  # Python's sum differs from version to version
                    squares += float(m) * len(row) * (float(m) * len(row))
                v = self.beta * float(self.tensors["second"][g]) + (1 - self.beta) * squares / len(row)
                self.tensors["second"][g] = v
                scale = float(step.lrs[g]) / (math.sqrt(v / (1 - power)) + self.zeta)
                scaled[g] = [float(m) * scale for m in row]
            found.append(Step(step.number, step.loss, step.lrs, step.decays, scaled))
        return found


class MEAZO(Shared):
    r"""Zeroth-order SGD, normalised by the running size of its projected gradients.

    .. math::
        v \leftarrow \beta v + (1 - \beta)\, \overline{c^2}, \qquad
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n (\sqrt{\hat v} + \zeta)} \sum_i c_i D_i

    Args:
        lr: learning rate, at least 0: about what a coordinate moves by, relative to its tensor's rms when relative.
        beta: 0 <= beta < 1. zeta: above 0.
        params, eps, directions, sides, distribution and the rest: as in `MeZO`.
    """

    RATE = 5e-3

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-5,
        eps: float = 1e-2,
        *,
        beta: float = 0.99,
        zeta: float = 1e-8,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution, "beta": beta, "zeta": zeta}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        return Family(chosen["distribution"]), MEAZOState(chosen["beta"], chosen["zeta"])
