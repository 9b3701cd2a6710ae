"""Signal and noise of a step, from the scores of shared directions.

Along one direction every example has a derivative d_b. Their mean m over B examples is what a batch says of it, and carries the
examples' variance v / B as noise. Over K directions, of mean square M = mean m^2 and mean variance V = mean v,

    signal           S = M - V / B      the mean square of the derivative itself
    noise scale      V / S              examples at which signal and noise are equal; a batch much larger gains little
    signal to noise  B S / V            of a step's batch

after McCandlish et al. (2018, arXiv 1812.06162), along random directions in place of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch

from zerograd.directions.family import Directions
from zerograd.evaluate.score import score_batch
from zerograd.optim.base import ZerothOrder
from zerograd.queries import plan as plans

DIRECTIONS = 2
"""Of a probe: two evaluations of its examples each."""

BATCHES = 4
"""Steps' batches that a probe's examples make: the noise that hides the signal is so much smaller."""

APART = 4 * DIRECTIONS * BATCHES
"""Steps between probes, at least: they take a fifth of the time of training at most."""

PROBES = 1 << 31
"""The first step number of probes' directions, which no run comes to."""


@dataclass
class Signal:
    """What was seen along the directions that were probed. batch: examples of a step. examples: of a probe.

    squares: of the mean derivative along each direction. variances: of the examples' derivatives.
    """

    batch: int
    examples: int
    squares: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)

    def probe(self, optimizer: ZerothOrder, objective: Any, parts: Sequence[tuple[Any, int, int]]) -> None:
        """Score some new directions, shared by all examples of some batches; weights are read only.

        parts: (batch, examples in it, examples of it that a pass takes), `examples` in all.
        """
        for slot, group in zip(optimizer.slots, optimizer.group_of, strict=True):
            slot.eps = optimizer.param_groups[group]["eps"]
        for _ in range(DIRECTIONS):
            directions = Directions(optimizer.family, optimizer.seed, PROBES + len(self.squares))
            pairs = [
                score_batch(optimizer.slots, directions, plans.shared_pairs(count), objective, batch, micro_batch=pass_).view(2, -1)
                for batch, count, pass_ in parts
            ]
            plus, minus = torch.cat(pairs, 1).double()
            derivative = (plus - minus) / 2
            if bool(derivative.isfinite().all()):
                self.squares.append(float(derivative.mean()) ** 2)
                self.variances.append(float(derivative.var()))

    @property
    def noise_scale(self) -> float:
        """Examples at which a batch's signal and noise are equal; infinite where no signal was seen, NaN before a probe."""
        return self._scale(0.0)

    @property
    def interval(self) -> tuple[float, float]:
        """The noise scale where the signal is a standard error larger, and where it is one smaller."""
        return self._scale(1.0), self._scale(-1.0)

    @property
    def to_noise(self) -> float:
        """Signal over noise of a step's mean derivative along a direction."""
        return self.batch / self.noise_scale if self.noise_scale else math.inf

    def _scale(self, errors: float) -> float:
        if not self.squares:
            return math.nan
        variance = fmean(self.variances)
        signal = fmean(self.squares) - variance / self.examples
        if len(self.squares) > 1:
            signal += errors * stdev(self.squares) / math.sqrt(len(self.squares))
        return variance / signal if signal > 0 else math.inf
