"""The limits of a run, the share of it that is done, and the learning rate's schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zerograd.optim.base import ZerothOrder
from zerograd.tune.settings import TuneSettings


@dataclass(frozen=True)
class Limits:
    """The limits of a run, which ends at the first one that it reaches; 0 for no limit."""

    minutes: float = 0.0
    steps: int = 0
    evaluations: int = 0

    @classmethod
    def of(cls, settings: TuneSettings) -> Limits:
        """The limits in a run's settings."""
        return cls(settings.minutes, settings.steps, settings.evaluations)

    def done(self, seconds: float, optimizer: ZerothOrder) -> float:
        """The share of the run that is done: the largest of the shares of its limits. seconds: of training."""
        shares = [0.0]
        if self.minutes:
            shares.append(seconds / (60 * self.minutes))
        if self.steps:
            shares.append(optimizer.steps / self.steps)
        if self.evaluations:
            shares.append(evaluations_of(optimizer) / self.evaluations)
        return max(shares)

    def left(self, seconds: float, optimizer: ZerothOrder) -> float:
        """The share of the run that is left; with a limit of steps, the same bits as in transformers' schedules."""
        shares = [1.0]
        if self.minutes:
            shares.append(max(0.0, 1 - seconds / (60 * self.minutes)))
        if self.steps:
            shares.append((self.steps - optimizer.steps) / self.steps)
        if self.evaluations:
            shares.append((self.evaluations - evaluations_of(optimizer)) / self.evaluations)
        return min(shares)


def evaluations_of(optimizer: ZerothOrder) -> float:
    """Evaluations of the batch in all steps, counting every branch; without those of checks and probes."""
    return optimizer.steps * optimizer.evaluations


def schedule(name: str, done: float, left: float) -> float:
    """The factor of the learning rate. done, left: the shares of the run that are done and left."""
    if name == "linear":
        return left
    return 0.5 * (1 + math.cos(math.pi * done)) if name == "cosine" else 1.0
