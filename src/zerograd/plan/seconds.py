"""How long a step takes: an estimate from the rates of a machine, good to about a factor of two."""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.optim.base import ZerothOrder
from zerograd.plan.machine import Machine
from zerograd.plan.shapes import Shape
from zerograd.train.settings import PlanSettings

EFFICIENCY = 0.5
"""Share of the rate of large products that whole passes reach: 0.4 on the demo model, 0.9 at 125 million parameters of OPT's shape
(benchmarks/results/demo.json, step.json)."""

DENSE, LOW_RANK, FACTOR = 3e-9, 2e-9, 5e-11
"""CPU seconds a trained value to perturb it and to update it, in bfloat16 at 8 x 64 tokens (benchmarks/results/step.json): by a
dense direction, by low-rank ones, and for each of those (docs/numerics.md)."""

MOVED = 18
"""Bytes a value that a dense direction moves on an accelerator: read, written for two signs, read again, updated in place."""

UPDATED = 28
"""Bytes that AdamW moves for each value: weight, gradient and two moments read, all but the gradient written, in float32."""


@dataclass(frozen=True)
class Clock:
    """Seconds of a step of a model on a machine; None everywhere where the machine's rates are not known."""

    shape: Shape
    machine: Machine
    settings: PlanSettings

    def evaluated(self, rows: int, at_a_time: int) -> float | None:
        """A batch of so many rows, so many in a pass."""
        return self._passes(self.shape.body, rows, at_a_time)

    def tuned(self, optimizer: ZerothOrder, scheme: str, copies: int, at_a_time: int) -> float | None:
        """A step of a method: the layers below the first trained one once for the batch, the others once a branch."""
        batch = self.settings.batch_size
        above = self.shape.upper if scheme == "upper" else self.shape.body
        branches = self._passes(above, batch * copies, at_a_time)
        below = self._passes(self.shape.body - above, batch, at_a_time)
        noise = self._noise(optimizer, self.shape.trained[scheme], -(-batch * copies // at_a_time))
        return None if branches is None or below is None or noise is None else branches + below + noise

    def propagated(self, times: int, at_a_time: int, trained: int) -> float | None:
        """A step of AdamW. times: what it costs over the forward pass alone: 3, or 4 where layers run again."""
        forward = self._passes(self.shape.body, self.settings.batch_size, at_a_time)
        if forward is None or self.machine.bandwidth is None:
            return None
        return times * forward + UPDATED * trained / self.machine.bandwidth

    def _passes(self, values: int, rows: int, at_a_time: int) -> float | None:
        """Rows through layers of so many values: 2 FLOP a value and token, and attention's; or the reading of weights."""
        if not (self.machine.flops and self.machine.bandwidth) or not values:
            return None if values else 0.0
        tokens = rows * self.settings.tokens
        attention = 4 * self.settings.tokens * self.shape.hidden * self.shape.layers * values / max(1, self.shape.body)
        head = 2 * rows * self.settings.answer_tokens * self.shape.vocabulary * self.shape.hidden
        size = 4 if self.settings.storage == "float32" else 2
        computed = (tokens * (2 * values + attention) + head) / (EFFICIENCY * self.machine.flops)
        return max(computed, -(-rows // at_a_time) * size * values / self.machine.bandwidth)

    def _noise(self, optimizer: ZerothOrder, trained: int, passes: int) -> float | None:
        """Directions, drawn to evaluate in each pass and once to update."""
        directions = len(optimizer.plan(self.settings.batch_size).directions)
        dense = not optimizer.family.rank
        if self.machine.is_cpu:
            each = DENSE * directions * (1 + passes) / 2 if dense else LOW_RANK + FACTOR * directions
            return trained * each / self.machine.threads
        if self.machine.bandwidth is None:
            return None
        return trained * MOVED * (directions if dense else 1) / self.machine.bandwidth
