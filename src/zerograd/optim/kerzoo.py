r"""KerZOO (2025): MeZO whose smoothing radius is drawn anew at every step, weighted so that the low-order bias cancels.

r ~ U[-1, 1],     c = (L(w + eps r z) - L(w - eps r z)) / (2 eps) K(r),     K(r) = (15 / 4) r (5 - 7 r^2),     w <- w - lr c z

E[r K(r)] = 1 and E[r^3 K(r)] = 0: the first order is unbiased, and the third vanishes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import nn

from zerograd import noise
from zerograd.noise import CHANCE, Address
from zerograd.optim.base import Common
from zerograd.optim.shared import Shared
from zerograd.queries.plan import Plan


class KerZOO(Shared):
    r"""Zeroth-order SGD with kernel-weighted random radii.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma \frac{K(r)}{2 \epsilon} (L(w + \epsilon r D) - L(w - \epsilon r D)) D

    Args:
        params, lr, eps, distribution and the rest: as in `MeZO`; eps is the largest radius.
    """

    RATE = 0.004

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
    def radius(self) -> float:
        """r of the next step: a multiple of 2^-23 of -1 <= r <= 1."""
        word = noise.stream(Address(self.seed, self.steps, 0, 0, CHANCE))[0]
        return (word >> 8) * 2.0**-23 - 1

    def plan(self, examples: int) -> Plan:
        plan = super().plan(examples)
        return replace(plan, sign=plan.sign * self.radius)

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        r = self.radius
        scale: float = group["lr"] / group["eps"] * 15 / 4 * r * (5 - 7 * r * r)
        return differences * scale
