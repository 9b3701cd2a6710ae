"""How long a step takes: an estimate from the rates of a machine that does nothing else.

Products go at the rate of large ones, as they do from some hundred tokens on; all that is between them, and what a method does to a
tensor as a whole, at the rate at which memory is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions.family import SHAPED
from zerograd.optim.base import ZerothOrder
from zerograd.planner.kept import Kept
from zerograd.planner.machine import Machine
from zerograd.planner.settings import PlanSettings
from zerograd.planner.shapes import Shape
from zerograd.text.models import schemes

PYTHON = 2.5e-3
"""Seconds of Python and of calls for a layer in a pass (docs/numerics.md); an accelerator hides them behind its work."""

DENSE, LOW_RANK, FACTOR = 3e-9, 2e-9, 5e-11
"""CPU seconds a trained value to perturb it and to update it, in bfloat16 at 8 x 64 tokens (benchmarks/results/step.json): by a
dense direction, by low-rank ones, and for each of those (docs/numerics.md)."""

ELEMENT = 1.5e-10
"""CPU seconds an element of what a product with low-rank directions reads and writes (docs/numerics.md)."""

MOVED = 18
"""Bytes a value that a dense direction moves on an accelerator: read, written for two signs, read again, updated in place."""

UPDATED = 28
"""Bytes that AdamW moves for each value: weight, gradient and two moments read, all but the gradient written, in float32."""


@dataclass(frozen=True)
class Clock:
    """Seconds of a step of a model on a machine; None everywhere where the machine's rates are not known.

    between: bytes that the operations between the products of all layers move for a row. cuts: see `activations.cuts`.
    """

    shape: Shape
    machine: Machine
    settings: PlanSettings
    between: float
    cuts: bool

    def evaluated(self, rows: int, at_a_time: int) -> float | None:
        """A batch of so many rows, so many in a pass."""
        return self._passes(self.shape.body, rows, at_a_time)

    def tuned(self, optimizer: ZerothOrder, scheme: str, kept: Kept, at_a_time: int) -> float | None:
        """A step of a method: the layers below the first trained one once for the batch, the others once a branch. kept: what the
        method moves.
        """
        batch = self.settings.batch_size
        rows = round(batch * optimizer.evaluations)
        above = self.shape.upper if scheme in schemes.UPPER and self.cuts else self.shape.body
        branches = self._passes(above, rows, at_a_time)
        below = self._passes(self.shape.body - above, batch, at_a_time, scored=False)
        noise = self._noise(optimizer, scheme, rows, -(-rows // at_a_time), kept)
        return None if branches is None or below is None or noise is None else branches + below + noise

    def propagated(self, times: int, at_a_time: int, trained: int) -> float | None:
        """A step of AdamW. times: what it costs over the forward pass alone: 3, or 4 where layers run again."""
        forward = self._passes(self.shape.body, self.settings.batch_size, at_a_time)
        if forward is None or self.machine.bandwidth is None:
            return None
        return times * forward + UPDATED * trained / self.machine.bandwidth

    @property
    def _size(self) -> int:
        """Bytes of a weight, or of an activation."""
        return 4 if self.settings.storage == "float32" else 2

    def _passes(self, values: int, rows: int, at_a_time: int, scored: bool = True) -> float | None:
        """Rows through layers of so many values: 2 FLOP a value and token, and attention's, or the reading of weights; and what the
        operations between move. scored: whether the head is met above them.
        """
        if not (self.machine.flops and self.machine.bandwidth):
            return None
        share, passes = values / max(1, self.shape.body), -(-rows // at_a_time)
        tokens = rows * self.settings.tokens
        attention = 4 * self.settings.tokens * self.shape.hidden * self.shape.layers * share
        answers = self.settings.tokens if self.shape.caps else self.settings.answer_tokens
        head = 2 * rows * answers * self.shape.vocabulary * self.shape.hidden * scored
        computed = (tokens * (2 * values + attention) + head) / self.machine.flops
        products = max(computed, passes * self._size * values / self.machine.bandwidth)
        calls = PYTHON * passes * self.shape.layers * share if self.machine.is_cpu else 0.0
        return products + rows * self.between * share / self.machine.bandwidth + calls

    def _noise(self, optimizer: ZerothOrder, scheme: str, rows: int, passes: int, kept: Kept) -> float | None:
        """Directions, drawn to evaluate in each pass and once to update."""
        if not (self.machine.flops and self.machine.bandwidth):
            return None
        directions, trained = len(optimizer.plan(self.settings.batch_size).directions), self.shape.trained[scheme]
        family = optimizer.family
        moved, drawn = passes * kept.evaluated + kept.updated, 0.0
        if not self.machine.is_cpu:
            moved += trained * MOVED * (1 if family.rank else directions)
        elif not family.rank:
            drawn = trained * DENSE * directions * (1 + passes) / 2
        else:
            tokens = rows * self.settings.tokens
            drawn = trained * (LOW_RANK + FACTOR * directions) + tokens * self._sides(scheme) * ELEMENT
        if family.rank and family.shape is not None:  # a second product, its matrix made in chunks that each read all tokens anew
            tokens = rows * self.settings.tokens
            drawn += self.machine.threads * 2 * tokens * min(trained, self.shape.body) / self.machine.flops
            moved += 2 * self._size * tokens * self._chunks(scheme)
        return drawn / self.machine.threads + moved / self.machine.bandwidth

    def _sides(self, scheme: str) -> int:
        """What a token's products with trained matrices read and write, in elements."""
        return sum(n * stack * (rows + columns) for (stack, rows, columns), n in self.shape.tensors[scheme].items() if rows > 1)

    def _chunks(self, scheme: str) -> float:
        """What they read when a matrix is made SHAPED values at a time."""
        views = self.shape.tensors[scheme].items()
        return sum(n * stack * rows * columns**2 / SHAPED for (stack, rows, columns), n in views if rows > 1)
