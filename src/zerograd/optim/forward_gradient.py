r"""Forward gradient (Baydin et al. 2022, arXiv 2202.08587): the exact derivative along a random direction, by forward-mode AD.

w <- w - lr (grad L . z) z

It is what a two-point estimate tends to as eps goes to 0: the noise-free bound of a scheme of directions. One dual forward, the
work of two to three plain ones and counted as three, with attention by its plain formula; z of all weights is held while it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.directions.family import Directions
from zerograd.evaluate import derivative
from zerograd.evaluate.score import Objective
from zerograd.optim.base import Common, ZerothOrder
from zerograd.queries.plan import Plan, clean


class ForwardGradient(ZerothOrder):
    r"""SGD along random directions with their exact derivatives.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma\, (\nabla L \cdot D)\, D

    Args:
        params, lr, distribution and the rest: as in `MeZO`. There is no eps, and no self-check: nothing is perturbed.

    Raises ValueError for a closure: a derivative needs step(objective, batch).
    """

    RATE = 0.01
    perturbs = False
    per_example = True

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        *,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        common["self_check"] = False
        super().__init__(params, {"distribution": distribution}, lr=lr, eps=1.0, **common)

    def plan(self, examples: int) -> Plan:
        return clean(examples)

    @property
    def evaluations(self) -> float:
        return 3

    def differences(self, scores: torch.Tensor) -> torch.Tensor:
        """The derivative of the mean loss: float32 (1,). scores: losses, then derivatives, of each example."""
        return scores.view(2, -1)[1].mean().view(1)

    def loss_of(self, scores: torch.Tensor) -> float:
        return float(scores.view(2, -1)[0].mean())

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        scale: float = group["lr"]
        return differences * scale

    def _batch_scores(
        self, objective: Objective, batch: Any, directions: Directions, micro_batch: int | str | None, plan: Plan
    ) -> torch.Tensor:
        self.forwards += self.evaluations
        size = micro_batch if isinstance(micro_batch, int) else None
        return torch.cat(derivative.along(self.slots, directions, objective, batch, plan.examples, size))
