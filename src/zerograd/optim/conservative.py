r"""ZO-SGD-Cons (ZO-LLM, Zhang et al. 2024, arXiv 2402.11592): a step, its opposite, or none, by the batch's own loss.

w <- argmin of L over { w, w - lr c z, w + lr c z },        c = (L(w + eps z) - L(w - eps z)) / (2 eps)

The candidates lie along z, so that they are evaluated as any perturbation is: five evaluations, and no weight is written for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.optim.base import Common
from zerograd.optim.shared import Plain
from zerograd.queries.plan import Plan, along


class Conservative(Plain):
    r"""Zeroth-order SGD that never raises the loss of its batch.

    .. math:: w \leftarrow \arg\min_{u \in \{w,\ w - \gamma c D,\ w + \gamma c D\}} L(u)

    Args:
        params, lr, eps, distribution and the rest: as in `MeZO`.

    Weight decay comes on top of the step that was chosen, and storage "bfloat16" rounds it at random.
    """

    RATE = 0.02

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, {"distribution": distribution}, lr=lr, eps=eps, **common)

    @property
    def copies(self) -> int:
        return 3  # of its candidates

    @property
    def evaluations(self) -> float:
        return 5

    def reconsidered(self, differences: torch.Tensor, plan: Plan, score: Callable[[Plan], torch.Tensor]) -> torch.Tensor:
        for slot, group in zip(self.slots, self.group_of, strict=True):  # a candidate is a perturbation by its own amount
            slot.eps = float(self.multipliers(differences, self.param_groups[group])[0])
        at, there, back = score(along(plan.examples, (0.0, -1.0, 1.0))).view(3, -1).mean(1).tolist()
        best = min((at, 0.0), (there, 1.0), (back, -1.0), key=lambda pair: (math.isnan(pair[0]), pair[0]))
        return differences * best[1]
