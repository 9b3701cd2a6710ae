r"""HiZOO (Zhao et al., ICLR 2025, arXiv 2402.15173): directions preconditioned by a diagonal estimate of the Hessian.

    D = z / sqrt(H),        h = |L(w + eps D) + L(w - eps D) - 2 L(w)| / (2 eps^2) * H z^2
    H <- (1 - a) H + a h,   w <- w - lr c z / sqrt(H),      H begins as 1

H is in units of each tensor's scale, as directions are. Three evaluations a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import nn

from zerograd.directions.family import Directions, Family
from zerograd.optim.base import Common, ZerothOrder
from zerograd.queries.plan import Plan, along
from zerograd.spaces.weights import Slot
from zerograd.update import apply
from zerograd.update.apply import Step
from zerograd.update.state import Beside, State


class Curvature(Beside):
    """H, float32, a number a weight. It is the shape of directions too: 1 / sqrt(H)."""

    kept = ("hessian",)

    def __init__(self, smoothing: float) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing is {smoothing}; it must be at least 0 and below 1")
        super().__init__()
        self.smoothing = smoothing

    def begin(self, slots: Sequence[Slot], groups: int) -> None:
        super().begin(slots, groups)
        for tensor in self.tensors.values():
            tensor.fill_(1)

    def update(self, slot: Slot, family: Family, seed: int, steps: Sequence[Step], group: int) -> None:
        plain, hessian = replace(family, shape=None), self.tensors[f"hessian.{slot.name}"]
        for step in steps:
            z = Directions(plain, seed, step.number).sums(slot, [0], [1.0])
            c, curvature = step.multipliers[group].tolist()
            lr = float(step.lrs[group])

            def change(
                nothing: torch.Tensor, rows: slice, step: Step, z: Any = z, c: float = c, k: float = curvature, lr: float = lr
            ) -> torch.Tensor:
                drawn, h = z(rows), hessian[rows]
                h.copy_(h * (1 - self.smoothing) + (h * (drawn * drawn)).mul_(k * self.smoothing))
                changed: torch.Tensor = drawn.mul_(c * lr).div_(h.sqrt())
                return changed

            apply.change_by(slot, plain, seed, [replace(step, multipliers=step.multipliers * 0)], group, change)

    def applies(self, slot: Slot) -> bool:
        return True

    def values(self, directions: Directions, slot: Slot, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        """1 / sqrt(H), the shape of directions."""
        h = self.tensors[f"hessian.{slot.name}"][rows, columns]
        return torch.ones_like(h).div_(h.sqrt())


class HiZOO(ZerothOrder):
    r"""Zeroth-order SGD preconditioned by a diagonal Hessian estimate.

    .. math:: D = s \odot z / \sqrt H, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, c D

    Args:
        smoothing: a, 0 <= a < 1; the published code's is 1e-8, with which H stays 1 for thousands of steps.
        params, lr, eps, distribution and the rest: as in `MeZO`; the paper's directions are Gaussian.
    """

    RATE = 0.01

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        smoothing: float = 1e-8,
        distribution: str = "gaussian",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, {"distribution": distribution, "smoothing": smoothing}, lr=lr, eps=eps, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        state = Curvature(chosen["smoothing"])
        return Family(chosen["distribution"], shape=state), state

    def plan(self, examples: int) -> Plan:
        return along(examples, (1.0, -1.0, 0.0))

    def differences(self, scores: torch.Tensor) -> torch.Tensor:
        """(eps times the derivative, eps^2 times half the size of the second one)."""
        plus, minus, clean = scores.view(3, -1).mean(1)
        return torch.stack([(plus - minus) / 2, (plus + minus - 2 * clean).abs() / 2])

    def slopes(self, differences: torch.Tensor) -> torch.Tensor:
        return differences[:1]

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        return differences / torch.tensor([group["eps"], group["eps"] ** 2], dtype=torch.float32)
