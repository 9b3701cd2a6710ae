r"""One-sided populations with a leave-one-out baseline (Kool et al. 2019): the estimator of LOREN (AAAI 2026).

d_i = L(w + eps z_i) - (1 / (n - 1)) sum over j != i of L(w + eps z_j),        w <- w - lr (1 / n) sum_i (d_i / eps) z_i

n evaluations give n - 1 effective directions, and no clean one is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.optim.base import Common, ZerothOrder
from zerograd.queries import estimates as estimate
from zerograd.queries.plan import Plan, along_each


class LeaveOneOut(ZerothOrder):
    r"""Zeroth-order SGD with one-sided directions shared by the batch, each compared with the others.

    .. math::
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n \epsilon}
        \sum_i \Big( L(w + \epsilon D_i) - \tfrac{1}{n - 1} \sum_{j \ne i} L(w + \epsilon D_j) \Big) D_i

    Args:
        directions: n, at least 2.
        rank: of a matrix's direction; 0 is dense.
        params, lr, eps, distribution and the rest: as in `MeZO`.
    """

    RATE = 0.05

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        directions: int = 8,
        rank: int = 0,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        if directions < 2:
            raise ValueError(f"directions is {directions}; it must be at least 2, to be compared with each other")
        self.directions = directions
        super().__init__(params, {"distribution": distribution, "rank": rank}, lr=lr, eps=eps, **common)

    def plan(self, examples: int) -> Plan:
        return along_each(examples, self.directions)

    def differences(self, scores: torch.Tensor) -> torch.Tensor:
        return estimate.leave_one_out(scores.view(self.directions, -1).mean(1))

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        scale: float = group["lr"] / (group["eps"] * len(differences))
        return differences * scale
