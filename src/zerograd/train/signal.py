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
from dataclasses import dataclass
from typing import Any

from zerograd.optim.base import ZerothOrder
from zerograd.perturb import plan as plans
from zerograd.perturb.directions import Directions
from zerograd.perturb.score import score_batch

DIRECTIONS = 4
"""Of a probe: two evaluations of the batch each."""

PROBES = 1 << 31
"""The first step number of probes' directions, which no run comes to."""


@dataclass
class Signal:
    """Sums over the directions that were probed. examples: of a batch."""

    examples: int
    directions: int = 0
    square: float = 0.0
    variance: float = 0.0

    def probe(self, optimizer: ZerothOrder, objective: Any, batch: Any, micro_batch: int) -> None:
        """Score some new directions, shared by all examples of a batch; weights are read only."""
        for slot in optimizer.slots:
            slot.eps = next(g["eps"] for g in optimizer.param_groups if any(p is slot.parameter for p in g["params"]))
        for _ in range(DIRECTIONS):
            directions = Directions(optimizer.family, optimizer.seed, PROBES + self.directions)
            plan = plans.shared_pair(self.examples)
            scores = score_batch(optimizer.slots, directions, plan, objective, batch, micro_batch=micro_batch)
            plus, minus = scores.view(2, -1).double()
            derivative = (plus - minus) / 2
            if bool(derivative.isfinite().all()):
                self.directions += 1
                self.square += float(derivative.mean()) ** 2
                self.variance += float(derivative.var())

    @property
    def noise_scale(self) -> float:
        """Examples at which a batch's signal and noise are equal; infinite where no signal was seen, NaN before a probe."""
        if not self.directions:
            return math.nan
        signal = (self.square - self.variance / self.examples) / self.directions
        return self.variance / self.directions / signal if signal > 0 else math.inf

    @property
    def to_noise(self) -> float:
        """Signal over noise of a batch's mean derivative along a direction."""
        return self.examples / self.noise_scale if self.noise_scale else math.inf
