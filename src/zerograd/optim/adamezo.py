r"""AdaMeZO: Adam's moments without Adam's memory, from the last h steps' coefficients (ICML 2026).

The estimates are drawn again from their addresses: min(h, steps so far) draws an update, and no tensor beside a weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, SharedSettings
from zerograd.settings.ranges import require_moments
from zerograd.update import Chunk, Elementwise, GroupStep, Kept

LONGEST_HISTORY = 1000


class HistoryRule(Elementwise):
    """The numbers and the coefficients of the last h steps, newest first."""

    def __init__(self, history: int, betas: tuple[float, float], zeta: float, directions: int) -> None:
        if not 1 <= history <= LONGEST_HISTORY:
            raise ValueError(f"history is {history}; it must be 1 to {LONGEST_HISTORY}")
        require_moments(betas, zeta)
        self.steps_drawn, self.directions, self.zeta = history, directions, zeta
        self.weights = [_weights(beta, history) for beta in betas]

    def numbers(self, groups: int) -> dict[str, torch.Tensor]:
        coefficients = torch.zeros(self.steps_drawn, groups, self.directions, dtype=torch.float32)
        return {"numbers": torch.full((self.steps_drawn,), -1, dtype=torch.int64), "coefficients": coefficients}

    def advance(self, numbers: Kept, steps: Sequence[GroupStep]) -> Sequence[GroupStep]:
        for tensor in numbers.values():
            tensor.copy_(tensor.roll(1, 0))
        numbers["numbers"][0] = steps[0].number
        numbers["coefficients"][0] = torch.tensor([step.coefficients for step in steps], dtype=torch.float32)
        known = [(n, by_group) for n, by_group in zip(*(t.tolist() for t in numbers.values()), strict=True) if n >= 0]
        return [replace(step, context=[(n, by_group[g]) for n, by_group in known]) for g, step in enumerate(steps)]

    def change(self, chunk: Chunk, kept: Kept, step: GroupStep) -> torch.Tensor:
        first, second = (weights[len(step.context) - 1] for weights in self.weights)
        m = v = torch.zeros((), dtype=torch.float32, device=chunk.target.space.device)
        for (number, coefficients), of_first, of_second in zip(step.context, first, second, strict=True):
            g = chunk.estimate_of(number, coefficients)
            v = v + (g * g).mul_(of_second)
            m = m + g.mul_(of_first)
        return m.div_(v.sqrt_().add_(self.zeta))


def _weights(beta: float, history: int) -> list[list[float]]:
    """The weights (1 - beta) beta^k / (1 - beta^n) of the steps k = 0, 1, ... ago, for each number n of steps."""
    powers = list(itertools.accumulate(itertools.repeat(beta, history), lambda a, b: a * b, initial=1.0))
    return [[(1 - beta) * power / (1 - powers[n]) for power in powers[:n]] for n in range(1, history + 1)]


@dataclass(frozen=True)
class Settings(SharedSettings):
    """history: h, 1 to 1,000; the paper's is 10. betas: the paper's are 0.7 and 0.9. zeta: above 0."""

    history: int = 10
    betas: tuple[float, float] = (0.7, 0.9)
    zeta: float = 1e-8

    def build(self) -> Method:
        rule = HistoryRule(self.history, self.betas, self.zeta, self.directions)
        return Method(Dense(self.distribution), self.query(), rule)


class AdaMeZO(ZerothOrder):
    r"""Adam's moments of the last n = min(h, t) estimates g_k, k steps ago.

    .. math::
        m = \sum_k \frac{(1 - \beta_1) \beta_1^k}{1 - \beta_1^n} g_k, \qquad
        v = \sum_k \frac{(1 - \beta_2) \beta_2^k}{1 - \beta_2^n} g_k^2, \qquad
        w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \odot \frac{m}{\sqrt v + \zeta}

    lr is about the change of a coordinate in a step, relative to its tensor's rms when relative.
    """

    Settings = Settings
    default_lr = 5e-3
