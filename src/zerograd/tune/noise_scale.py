"""The noise scale of a step: how many examples a batch needs until signal and noise are equal, from scores of shared directions.

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
from zerograd.queries.plan import shared_pairs

PROBE_DIRECTIONS = 2
"""Directions of a probe: two evaluations of its examples each."""

PROBE_BATCHES = 4
"""Batches of a step that a probe's examples make: the noise that hides the signal is so much smaller."""

STEPS_BETWEEN_PROBES = 4 * PROBE_DIRECTIONS * PROBE_BATCHES
"""The fewest steps between two probes, which then take a fifth of the time of training at most."""

FIRST_PROBE_STEP = 1 << 31
"""The first step number of probes' directions, which no run comes to."""


@dataclass
class NoiseScale:
    """What probes have measured. batch_size: examples of a step. probe_examples: examples of a probe.

    squared_means: of the mean derivative along each direction. variances: of the examples' derivatives along it.
    """

    batch_size: int
    probe_examples: int
    squared_means: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)

    @classmethod
    def for_run(cls, batch_size: int, training_rows: int) -> NoiseScale:
        """One without measurements, for steps of some examples out of a number of training rows."""
        return cls(min(batch_size, training_rows), min(PROBE_BATCHES * batch_size, training_rows))

    @property
    def probes(self) -> int:
        """How many probes were made."""
        return len(self.squared_means) // PROBE_DIRECTIONS

    def probe(self, optimizer: ZerothOrder, objective: Any, parts: Sequence[tuple[Any, int, int]]) -> None:
        """Score some new directions, shared by all examples of some batches; weights are read only.

        parts: (batch, examples in it, examples of it that a pass takes), `probe_examples` in all.
        """
        for slot, group in zip(optimizer.slots, optimizer.group_of, strict=True):
            slot.eps = optimizer.param_groups[group]["eps"]
        for _ in range(PROBE_DIRECTIONS):
            directions = Directions(optimizer.family, optimizer.seed, FIRST_PROBE_STEP + len(self.squared_means))
            pairs = [
                score_batch(optimizer.slots, directions, shared_pairs(count), objective, batch, micro_batch=pass_).view(2, -1)
                for batch, count, pass_ in parts
            ]
            plus, minus = torch.cat(pairs, 1).double()
            derivative = (plus - minus) / 2
            if bool(derivative.isfinite().all()):
                self.squared_means.append(float(derivative.mean()) ** 2)
                self.variances.append(float(derivative.var()))

    @property
    def examples(self) -> float:
        """The noise scale: examples at which a batch's signal and noise are equal; infinite without signal, NaN before a probe."""
        return self._scale(0.0)

    @property
    def interval(self) -> tuple[float, float]:
        """The noise scale where the signal is a standard error larger, and where it is one smaller."""
        return self._scale(1.0), self._scale(-1.0)

    @property
    def signal_to_noise(self) -> float:
        """Signal over noise of a step's mean derivative along a direction."""
        return self.batch_size / self.examples if self.examples else math.inf

    def _scale(self, errors: float) -> float:
        if not self.squared_means:
            return math.nan
        variance = fmean(self.variances)
        signal = fmean(self.squared_means) - variance / self.probe_examples
        if len(self.squared_means) > 1:
            signal += errors * stdev(self.squared_means) / math.sqrt(len(self.squared_means))
        return variance / signal if signal > 0 else math.inf
