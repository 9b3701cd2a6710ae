"""FZOO (ICLR 2026): several directions shared by the batch, one side each, against the clean model.

d_i = L(w + eps z_i) - L(w),        w <- w - lr * (1 / n) sum_i (d_i / std(d)) z_i

All n + 1 losses come from one forward. The deviation of the losses stands for eps |gradient|, so a step is normalised;
it is that of a sample, with n - 1. The published step is 1 / eps times this one; the released code leaves that out too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.optim.base import Common, ZerothOrder
from zerograd.queries import estimates as estimate
from zerograd.queries.plan import Plan, population


class FZOO(ZerothOrder):
    r"""Normalised zeroth-order SGD with a population of dense directions shared by the batch.

    .. math::
        d_i = L(w + \epsilon D_i) - L(w), \qquad
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n} \sum_i \frac{d_i}{\operatorname{std}(d)} D_i

    Args:
        params: a module, (name, parameter) pairs, parameters, or torch's groups of these.
        lr: learning rate, at least 0. When relative it is the relative change of a weight per step, times about sqrt(n).
        eps: smoothing radius, above 0. The paper's is 1e-4 with relative=False.
        directions: n, at least 2; the paper's is 8. A step evaluates n + 1 branches.
        distribution and the rest: as in `MeZO`.
    """

    RATE = 0.05

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        directions: int = 8,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        if directions < 2:
            raise ValueError(f"directions is {directions}; it must be at least 2, for their losses to have a deviation")
        self.directions = directions
        super().__init__(params, {"distribution": distribution}, lr=lr, eps=eps, **common)

    def plan(self, examples: int) -> Plan:
        return population(examples, self.directions)

    def differences(self, scores: torch.Tensor) -> torch.Tensor:
        losses = scores.view(self.directions + 1, -1).mean(1)
        return losses[:-1] - losses[-1]

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        scale: float = group["lr"] / len(differences)
        return estimate.standardise(differences) * scale
