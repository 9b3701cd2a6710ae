r"""ZO-SGD with momentum (ZO-SGD-MMT in Zhang et al. 2024, arXiv 2402.11592; torch's convention, no factor 1 - beta).

m <- beta m + g,        w <- w - lr m,        g the estimate
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.directions.family import Family
from zerograd.optim.base import Common
from zerograd.optim.shared import Shared
from zerograd.update.apply import Step
from zerograd.update.state import Dense, State


class MomentumState(Dense):
    """m, float32, a number a weight."""

    kept = ("momentum",)

    def __init__(self, beta: float) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta}; it must be at least 0 and below 1")
        super().__init__()
        self.beta = beta

    def change(self, estimate: torch.Tensor, held: Mapping[str, torch.Tensor], step: Step, group: int) -> torch.Tensor:
        m = held["momentum"].mul_(self.beta).add_(estimate)
        return m * float(step.lrs[group])


class Momentum(Shared):
    r"""Zeroth-order SGD with heavy-ball momentum.

    .. math:: m \leftarrow \beta m + g, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \odot m

    Args:
        beta: 0 <= beta < 1; the paper's is 0.9.
        params, lr, eps, directions, sides, distribution and the rest: as in `MeZO`.
    """

    RATE = 1e-3

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-4,
        eps: float = 1e-2,
        *,
        beta: float = 0.9,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution, "beta": beta}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        return Family(chosen["distribution"]), MomentumState(chosen["beta"])
