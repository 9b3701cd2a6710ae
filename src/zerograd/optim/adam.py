r"""ZO-Adam (Chen et al. 2019, "ZO-AdaMM"; ZO-Adam in Zhang et al. 2024): Adam's moments of the zeroth-order estimate.

    m <- b1 m + (1 - b1) g,     v <- b2 v + (1 - b2) g^2,     w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + zeta)

With one Rademacher direction g^2 is the same for every coordinate, and so is v: with b1 = 0 `MEAZO` is
the same, with one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.directions.family import Family
from zerograd.optim.base import Common
from zerograd.optim.ranges import require_moments
from zerograd.optim.shared import Shared
from zerograd.spaces.weights import Slot
from zerograd.update.apply import Step
from zerograd.update.state import Dense, Resolved, State


class AdamState(Dense):
    """m and v, float32, two numbers a weight; and the powers of the betas."""

    kept = ("first", "second")

    def __init__(self, betas: Sequence[float], zeta: float) -> None:
        require_moments(betas, zeta)
        super().__init__()
        self.betas = tuple(betas)
        self.zeta = zeta

    def begin(self, slots: Sequence[Slot], groups: int) -> None:
        super().begin(slots, groups)
        self.tensors["powers"] = torch.ones(2, dtype=torch.float64)

    def resolved(self, steps: Sequence[Step], seed: int) -> list[Step]:
        found: list[Step] = []
        for step in steps:
            self.tensors["powers"] *= torch.tensor(self.betas, dtype=torch.float64)
            found.append(Resolved.of(step, [1 / (1 - power) for power in self.tensors["powers"].tolist()]))
        return found

    def change(self, estimate: torch.Tensor, held: Mapping[str, torch.Tensor], step: Step, group: int) -> torch.Tensor:
        assert isinstance(step, Resolved)
        (b1, b2), (c1, c2) = self.betas, step.kept
        v = held["second"].mul_(b2).add_((estimate * estimate).mul_(1 - b2))
        m = held["first"].mul_(b1).add_(estimate.mul_(1 - b1))
        changed: torch.Tensor = (m * c1).div_((v * c2).sqrt_().add_(self.zeta)).mul_(float(step.lrs[group]))
        return changed


class Adam(Shared):
    r"""Adam on the zeroth-order estimate.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \odot \frac{\hat m}{\sqrt{\hat v} + \zeta}

    Args:
        lr: learning rate, at least 0: about what a coordinate moves by, relative to its tensor's rms when relative.
        betas: decay of the moments, each 0 <= beta < 1. zeta: above 0. Both defaults are Adam's.
        params, eps, directions, sides, distribution and the rest: as in `MeZO`.
    """

    RATE = 5e-3

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-5,
        eps: float = 1e-2,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        zeta: float = 1e-8,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution, "betas": list(betas), "zeta": zeta}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        return Family(chosen["distribution"]), AdamState(chosen["betas"], chosen["zeta"])
