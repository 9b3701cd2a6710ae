"""The noise scale: the batch size at which a step's signal equals its noise, from scores along shared directions.

Along one direction every example has a derivative d_b. A batch of B examples estimates it by the mean m, whose noise
has variance v / B, where v is the variance over examples. Over K directions, with M = mean m^2 and V = mean v,

    signal           S = M - V / B      the mean square of the true derivative
    noise scale      V / S              the batch size at which signal equals noise; a much larger batch gains little
    signal to noise  B S / V            for a step's batch

after McCandlish et al. (2018, arXiv 1812.06162), along random directions in place of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch

from zerograd.evaluate.evaluator import LocalBatch
from zerograd.optim.base import ZerothOrder
from zerograd.queries.plan import shared_pairs

PROBE_DIRECTIONS = 2
"""Directions of a probe, with two evaluations of its examples each."""

PROBE_BATCHES = 4
"""Examples of a probe, in batches of a step. The noise of the signal's estimate falls by this factor."""

STEPS_BETWEEN_PROBES = 4 * PROBE_DIRECTIONS * PROBE_BATCHES
"""The fewest steps between two probes, so that probes take at most a fifth of the training time."""

FIRST_PROBE_STEP = 1 << 31
"""The step number of the first probe's directions, which no run reaches."""


@dataclass
class NoiseScale:
    """The measurements of probes.

    batch_size: examples of a step. probe_examples: examples of a probe. squared_means: the squared mean derivative
    along each direction. variances: the variance over examples of the derivative along each direction.
    """

    batch_size: int
    probe_examples: int
    squared_means: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)

    @classmethod
    def for_run(cls, batch_size: int, training_rows: int) -> NoiseScale:
        """A noise scale without measurements, for a run's batch size and number of training rows."""
        return cls(min(batch_size, training_rows), min(PROBE_BATCHES * batch_size, training_rows))

    @property
    def probes(self) -> int:
        """The number of probes so far."""
        return len(self.squared_means) // PROBE_DIRECTIONS

    def probe(self, optimizer: ZerothOrder, objective: Any, parts: Sequence[tuple[Any, int, int]]) -> None:
        """Score new directions that all examples of the batches share; weights are only read.

        parts: (batch, examples in the batch, examples of a pass), `probe_examples` in total.
        """
        for _ in range(PROBE_DIRECTIONS):
            directions = optimizer.draws.at(FIRST_PROBE_STEP + len(self.squared_means))
            pairs = [
                LocalBatch.of(optimizer.spaces, objective, batch, micro_batch=pass_)
                .scores(shared_pairs(count), directions, optimizer.radii)
                .values
                for batch, count, pass_ in parts
            ]
            plus, minus = torch.cat(pairs, 1).double()
            derivative = (plus - minus) / 2
            if bool(derivative.isfinite().all()):
                self.squared_means.append(float(derivative.mean()) ** 2)
                self.variances.append(float(derivative.var()))

    @property
    def examples(self) -> float:
        """The noise scale in examples; infinite without signal, NaN before the first probe."""
        return self._scale(0.0)

    @property
    def interval(self) -> tuple[float, float]:
        """The noise scale for a signal one standard error larger, and for one a standard error smaller."""
        return self._scale(1.0), self._scale(-1.0)

    @property
    def signal_to_noise(self) -> float:
        """Signal over noise of a step's batch."""
        return self.batch_size / self.examples if self.examples else math.inf

    def _scale(self, errors: float) -> float:
        if not self.squared_means:
            return math.nan
        variance = fmean(self.variances)
        signal = fmean(self.squared_means) - variance / self.probe_examples
        if len(self.squared_means) > 1:
            signal += errors * stdev(self.squared_means) / math.sqrt(len(self.squared_means))
        return variance / signal if signal > 0 else math.inf
