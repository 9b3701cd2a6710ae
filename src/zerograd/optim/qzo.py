r"""QZO: ZO-SGD on the scales of quantised weights, with clipped derivatives (Shang et al., ICLR 2026, arXiv 2505.13430)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, SharedSettings
from zerograd.update import GroupStep, Kept, Rule

MEMORY = 0.9
"""What the running mean keeps at a step."""


class Clipped(Rule):
    """Plain SGD whose coefficients are clipped: to a bound, or to a multiple of their running mean size.

    It keeps a mean for each group, of what was left after clipping, so that one odd batch does not raise it; -1 before the first.
    """

    def __init__(self, clip: float, times: float) -> None:
        for name, value in (("clip", clip), ("times", times)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be a number of at least 0")
        if not clip and not times:
            raise ValueError("clip and times are both 0, so nothing would be clipped; use method mezo")
        self.clip, self.times = clip, times

    def numbers(self, groups: int) -> dict[str, torch.Tensor]:
        return {} if self.clip else {"size": torch.full((groups,), -1.0, dtype=torch.float64)}

    def advance(self, numbers: Kept, steps: Sequence[GroupStep]) -> Sequence[GroupStep]:
        return [replace(step, coefficients=self._clipped(numbers, group, step.coefficients)) for group, step in enumerate(steps)]

    def _clipped(self, numbers: Kept, group: int, given: Sequence[float]) -> list[float]:
        before = -1.0 if self.clip else float(numbers["size"][group])
        bound = self.clip / max(1, len(given)) or (math.inf if before < 0 else self.times * before)  # a coefficient is c_i / n
        clipped = [max(-bound, min(bound, c)) for c in given]
        if not self.clip and given:
            size = sum(map(abs, clipped)) / len(clipped)
            numbers["size"][group] = size if before < 0 else MEMORY * before + (1 - MEMORY) * size
        return clipped


@dataclass(frozen=True)
class Settings(SharedSettings):
    """clip: the largest size of a derivative, as published 100; 0 for `times` times the running mean of their sizes."""

    clip: float = 0.0
    times: float = 3.0

    def build(self) -> Method:
        return Method(Dense(self.distribution), self.query(), Clipped(self.clip, self.times))


class QZO(ZerothOrder):
    r"""Zeroth-order SGD with clipped directional derivatives, for gains of scales; c_i is MeZO's.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{n} \sum_i \operatorname{clip}(c_i, -C, C)\, D_i

    As published: clip=100, distribution="gaussian", eps=1e-3. The paper's eps is absolute; that of a gain is relative to its block.
    """

    Settings = Settings
    default_lr = 0.01
