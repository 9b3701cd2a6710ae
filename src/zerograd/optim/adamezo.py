r"""AdaMeZO (ICML 2026): Adam's moments without Adam's memory, made anew at every step from the last h steps' coefficients.

    m = sum_k (1 - b1) b1^k g_k / (1 - b1^n),     v = sum_k (1 - b2) b2^k g_k^2 / (1 - b2^n),     k = 0 .. n - 1 steps ago
    w <- w - lr m / (sqrt(v) + zeta)

The estimates g_k are drawn again from their addresses: n = min(h, steps so far) draws an update, and no tensor kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn

from zerograd.directions.family import Directions, Family
from zerograd.optim.base import Common
from zerograd.optim.ranges import require_moments
from zerograd.optim.shared import Shared
from zerograd.spaces.weights import Slot
from zerograd.update import apply
from zerograd.update.apply import Step
from zerograd.update.state import Resolved, State

MOST_HISTORY = 1000


class AdaMeZOState(State):
    """The numbers and the coefficients of the last h steps."""

    def __init__(self, history: int, betas: Sequence[float], zeta: float, directions: int) -> None:
        if not 1 <= history <= MOST_HISTORY:
            raise ValueError(f"history is {history}; it must be 1 to {MOST_HISTORY}")
        require_moments(betas, zeta)
        super().__init__()
        self.history, self.directions = history, directions
        self.zeta = zeta
        self.weights = [_weights(beta, history) for beta in betas]

    def begin(self, slots: Sequence[Slot], groups: int) -> None:
        self.tensors["numbers"] = torch.full((self.history,), -1, dtype=torch.int64)  # newest first
        self.tensors["coefficients"] = torch.zeros(self.history, groups, self.directions, dtype=torch.float32)

    def resolved(self, steps: Sequence[Step], seed: int) -> list[Step]:
        numbers, coefficients = self.tensors["numbers"], self.tensors["coefficients"]
        found: list[Step] = []
        for step in steps:
            numbers.copy_(numbers.roll(1))
            coefficients.copy_(coefficients.roll(1, 0))
            numbers[0], coefficients[0] = step.number, torch.from_numpy(np.array(step.multipliers))
            past = [pair for pair in zip(numbers.tolist(), coefficients.tolist(), strict=True) if pair[0] >= 0]
            found.append(Resolved.of(step, past))
        return found

    def update(self, slot: Slot, family: Family, seed: int, steps: Sequence[Step], group: int) -> None:
        for step in steps:
            assert isinstance(step, Resolved)
            lr, past = float(step.lrs[group]), step.kept
            first, second = (weights[len(past) - 1] for weights in self.weights)
            estimates = [
                Directions(family, seed, number).sums(slot, range(self.directions), multipliers[group])
                for number, multipliers in past
            ]

            def change(
                nothing: torch.Tensor,
                rows: slice,
                step: Step,
                estimates: Any = estimates,
                first: Any = first,
                second: Any = second,
                lr: float = lr,
            ) -> torch.Tensor:
                m, v = nothing, torch.zeros_like(nothing)
                for estimate, of_first, of_second in zip(estimates, first, second, strict=True):
                    g = estimate(rows)
                    v.add_((g * g).mul_(of_second))
                    m.add_(g.mul_(of_first))
                return m.div_(v.sqrt_().add_(self.zeta)).mul_(lr)

            apply.change_by(slot, family, seed, [replace(step, multipliers=step.multipliers * 0)], group, change)


def _weights(beta: float, history: int) -> list[list[float]]:
    """Of steps 0, 1, ... ago, for each number of them: (1 - beta) beta^k / (1 - beta^n)."""
    powers = list(itertools.accumulate(itertools.repeat(beta, history), lambda a, b: a * b, initial=1.0))
    return [[(1 - beta) * power / (1 - powers[n]) for power in powers[:n]] for n in range(1, history + 1)]


class AdaMeZO(Shared):
    r"""Adam's moments by replay of the last steps.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \odot \frac{\sum_k p_k g_k}{\sqrt{\sum_k q_k g_k^2} + \zeta}

    Args:
        lr: learning rate, at least 0: about what a coordinate moves by, relative to its tensor's rms when relative.
        history: h, 1 to 1,000; the paper's is 10. betas: the paper's are 0.7 and 0.9. zeta: above 0.
        params, eps, directions, sides, distribution and the rest: as in `MeZO`.
    """

    RATE = 5e-3

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-5,
        eps: float = 1e-2,
        *,
        history: int = 10,
        betas: tuple[float, float] = (0.7, 0.9),
        zeta: float = 1e-8,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        own = {"history": history, "betas": list(betas), "zeta": zeta, "directions": directions}
        chosen = {"distribution": distribution} | own
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        own = {name: value for name, value in chosen.items() if name != "distribution"}
        return Family(chosen["distribution"]), AdaMeZOState(**own)
