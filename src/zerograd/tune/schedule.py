"""How far a run is between its beginning and its limits, and the learning rate's factor there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zerograd.optim.base import ZerothOrder
from zerograd.tune.settings import TuneSettings


@dataclass(frozen=True)
class Limits:
    """Where a run ends: at the first of these that it reaches; 0 for no limit."""

    minutes: float = 0.0
    steps: int = 0
    evaluations: int = 0

    @classmethod
    def of(cls, settings: TuneSettings) -> Limits:
        """The limits that the settings of a run give."""
        return cls(settings.minutes, settings.steps, settings.evaluations)

    def done(self, seconds: float, optimizer: ZerothOrder) -> float:
        """The share of the run that is done: the largest of its shares of minutes, steps and evaluations. seconds: of training."""
        shares = [0.0]
        if self.minutes:
            shares.append(seconds / (60 * self.minutes))
        if self.steps:
            shares.append(optimizer.steps / self.steps)
        if self.evaluations:
            shares.append(evaluations_of(optimizer) / self.evaluations)
        return max(shares)

    def left(self, seconds: float, optimizer: ZerothOrder) -> float:
        """The share of the run that is left, to the bit as transformers' schedules have it when steps are the limit."""
        shares = [1.0]
        if self.minutes:
            shares.append(max(0.0, 1 - seconds / (60 * self.minutes)))
        if self.steps:
            shares.append((self.steps - optimizer.steps) / self.steps)
        if self.evaluations:
            shares.append((self.evaluations - evaluations_of(optimizer)) / self.evaluations)
        return min(shares)


def evaluations_of(optimizer: ZerothOrder) -> float:
    """How often the steps so far have evaluated the batch, each branch counted; checks and probes are not steps."""
    return optimizer.steps * optimizer.evaluations


def schedule(name: str, done: float, left: float) -> float:
    """The factor of the learning rate when a share `done` of the run is done and a share `left` is left."""
    if name == "linear":
        return left
    return 0.5 * (1 + math.cos(math.pi * done)) if name == "cosine" else 1.0
