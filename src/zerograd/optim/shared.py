"""Directions shared by the batch: n of them a step, of two sides or of one beside the clean model.

two sides    d_i = (L(w + eps D_i) - L(w - eps D_i)) / 2        2 n evaluations
one side     d_i = L(w + eps D_i) - L(w)                        n + 1 evaluations
estimate     (1 / n) sum_i (d_i / eps) D_i
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.optim.base import Common, ZerothOrder
from zerograd.queries import estimates as estimate
from zerograd.queries.plan import Plan, population, shared_pairs


class Shared(ZerothOrder):
    """Base of the methods that estimate so; what they make of the estimate is theirs."""

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        chosen: dict[str, Any],
        *,
        lr: float,
        eps: float,
        directions: int = 1,
        sides: int = 2,
        **common: Unpack[Common],
    ) -> None:
        if directions < 1:
            raise ValueError(f"directions is {directions}; it must be at least 1")
        if sides not in (1, 2):
            raise ValueError(f"sides is {sides}; it must be 1 or 2")
        self.directions = directions
        self.sides = sides
        super().__init__(params, chosen, lr=lr, eps=eps, **common)

    def plan(self, examples: int) -> Plan:
        return shared_pairs(examples, self.directions) if self.sides == 2 else population(examples, self.directions)

    def differences(self, scores: torch.Tensor) -> torch.Tensor:
        losses = scores.view(-1, len(scores) // ((2 if self.sides == 2 else 1) * self.directions + (self.sides == 1))).mean(1)
        return estimate.central(*estimate.halves(losses)) if self.sides == 2 else losses[:-1] - losses[-1]

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """What directions are multiplied by in the estimate."""
        scale: float = 1 / (group["eps"] * len(differences))
        return differences * scale


class Plain(Shared):
    """Those that subtract lr times the estimate."""

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        scale: float = group["lr"] / (group["eps"] * len(differences))
        return differences * scale
