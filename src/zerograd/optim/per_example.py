"""Per-example directions: each example sees its own low-rank ones, all in one batched forward.

A batch of B examples estimates the gradient with n B directions instead of one; with one direction an example the error falls
by (B + s) / (1 + s), s being the gradient noise scale.

    two sides    d_bi = (l_b(w + eps Z_bi) - l_b(w - eps Z_bi)) / 2
    one side     d_bi = l_b(w + eps Z_bi) - mean over j != i of l_b(w + eps Z_bj)
    update       w <- w - lr * (1 / (n B)) sum_bi a_bi Z_bi,      a = d / std(d)   or   d / eps
    direction    Z = (1 / sqrt r) sum_j a_j b_j^T

The forward is EGGROLL's (Sarkar et al. 2025, arXiv 2511.16652), as is the baseline of an example's own directions; the scaling of
two-sided differences is GRZO's (EMNLP Findings 2026). For the same number of evaluations one side has nearly twice the directions,
and keeps the even terms of the loss in eps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.optim.base import Common, ZerothOrder
from zerograd.optim.ranges import require_rank
from zerograd.queries import estimates as estimate
from zerograd.queries.plan import Plan, example_pairs, example_populations


class PerExample(ZerothOrder):
    r"""Zeroth-order SGD with low-rank directions of each example's own.

    .. math::
        d_{bi} = \tfrac12 (l_b(w + \epsilon D_{bi}) - l_b(w - \epsilon D_{bi})), \qquad
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n B} \sum_{b,i} \frac{d_{bi}}{\operatorname{std}(d)} D_{bi}

    Args:
        params: a module, (name, parameter) pairs, parameters, or torch's groups of these.
        lr: learning rate, at least 0. When standardised and relative it is the relative change of a weight per step,
            times sqrt(n B).
        eps: smoothing radius, above 0.
        directions: n, those of an example in a step, at least 1; with one side at least 2.
        sides: 2 for central differences, 1 for leave-one-out among an example's directions.
        rank: of a matrix's direction, at least 1; vectors have dense directions.
        standardised: divide by the standard deviation of the differences (GRZO); False is the plain estimate.
        distribution and the rest: as in `MeZO`.
    """

    RATE = 0.04
    per_example = True

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        directions: int = 1,
        sides: int = 2,
        rank: int = 1,
        standardised: bool = True,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        require_rank(rank)
        if sides not in (1, 2):
            raise ValueError(f"sides is {sides}; it must be 1 or 2")
        if directions < 3 - sides:
            raise ValueError(
                f"directions is {directions}; {'one side needs at least 2' if sides == 1 else 'it must be at least 1'}"
            )
        self.directions = directions
        self.sides = sides
        self.standardised = standardised
        super().__init__(params, {"distribution": distribution, "rank": rank}, lr=lr, eps=eps, **common)

    def plan(self, examples: int) -> Plan:
        if self.sides == 2:
            return example_pairs(examples, self.directions)
        return example_populations(examples, self.directions)

    def differences(self, scores: torch.Tensor) -> torch.Tensor:
        if self.sides == 2:
            return estimate.central(*estimate.halves(scores))
        return estimate.leave_one_out(scores.view(self.directions, -1)).flatten()

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        shaped = estimate.standardise(differences) if self.standardised else differences / group["eps"]
        scale: float = group["lr"] / len(differences)
        return shaped * scale
