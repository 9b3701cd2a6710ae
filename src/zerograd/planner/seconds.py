"""Seconds of a step: an estimate from the rates of a machine without other work.

Matrix products run at the rate of large products, as they do from some hundred tokens on. All other operations, and a
method's work on whole tensors, run at the memory bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions.directions import MODULATED
from zerograd.optim.base import ZerothOrder
from zerograd.planner.machine import Machine
from zerograd.planner.method_cost import MethodCost
from zerograd.planner.settings import PlanSettings
from zerograd.planner.shapes import Shape
from zerograd.text.models import schemes

LAYER_CALL_SECONDS = 2.5e-3
"""Seconds of Python and of calls per layer and pass (docs/numerics.md); an accelerator hides them behind its work."""

DENSE_SECONDS, LOW_RANK_SECONDS, FACTOR_SECONDS = 3e-9, 2e-9, 5e-11
"""CPU seconds per trained value for perturbation and update, in bfloat16 at 8 x 64 tokens
(benchmarks/results/step.json): for a dense direction, for low-rank directions, and for each low-rank direction more
(docs/numerics.md).
"""

ELEMENT_SECONDS = 1.5e-10
"""CPU seconds per element that a product with low-rank directions reads or writes (docs/numerics.md)."""

DENSE_DIRECTION_BYTES = 18
"""Bytes per value that a dense direction moves on an accelerator: a read, writes for two signs, reads by the products,
and an update in place.
"""

ADAMW_BYTES = 28
"""Bytes per value that AdamW moves, in float32: reads of weight, gradient and two moments, writes of all but the
gradient.
"""


@dataclass(frozen=True)
class Clock:
    """Seconds of a step of a model on a machine; every method returns None if the machine's rates are not known.

    layer_traffic: bytes per row that operations other than products move in all layers. can_share_prefix: see
    `activations.can_share_prefix`.
    """

    shape: Shape
    machine: Machine
    settings: PlanSettings
    layer_traffic: float
    can_share_prefix: bool

    def batch(self, rows: int, rows_per_pass: int) -> float | None:
        """Seconds to evaluate `rows` rows."""
        return self._passes(self.shape.body, rows, rows_per_pass)

    def step(self, optimizer: ZerothOrder, scheme: str, cost: MethodCost, rows_per_pass: int) -> float | None:
        """Seconds of a step of a method. The layers below the first trained one run once for the batch, the others once
        per branch.
        """
        batch = self.settings.batch_size
        rows = round(batch * optimizer.evaluations)
        above = self.shape.upper if scheme in schemes.UPPER and self.can_share_prefix else self.shape.body
        branches = self._passes(above, rows, rows_per_pass)
        below = self._passes(self.shape.body - above, batch, rows_per_pass, scored=False)
        noise = self._noise(optimizer, scheme, rows, -(-rows // rows_per_pass), cost)
        return None if branches is None or below is None or noise is None else branches + below + noise

    def backpropagation_step(self, times: int, rows_per_pass: int, trained: int) -> float | None:
        """Seconds of a step of AdamW. times: cost relative to the forward pass, 3, or 4 with checkpointing."""
        forward = self._passes(self.shape.body, self.settings.batch_size, rows_per_pass)
        if forward is None or self.machine.bandwidth is None:
            return None
        return times * forward + ADAMW_BYTES * trained / self.machine.bandwidth

    @property
    def _size(self) -> int:
        """Bytes of a weight or of an activation."""
        return 4 if self.settings.precision == "float32" else 2

    def _passes(self, values: int, rows: int, rows_per_pass: int, scored: bool = True) -> float | None:
        """Seconds of passes through layers with `values` values: the larger of arithmetic (2 FLOP per value and token,
        and attention) and reading the weights; and the traffic of other operations. scored: whether the head follows.
        """
        if not (self.machine.flops and self.machine.bandwidth):
            return None
        share, passes = values / max(1, self.shape.body), -(-rows // rows_per_pass)
        tokens = rows * self.settings.tokens
        attention = 4 * self.settings.tokens * self.shape.hidden * self.shape.layers * share
        answers = self.settings.tokens if self.shape.has_full_logits else self.settings.answer_tokens
        head = 2 * rows * answers * self.shape.vocabulary * self.shape.hidden * scored
        computed = (tokens * (2 * values + attention) + head) / self.machine.flops
        products = max(computed, passes * self._size * values / self.machine.bandwidth)
        calls = LAYER_CALL_SECONDS * passes * self.shape.layers * share if self.machine.is_cpu else 0.0
        return products + rows * self.layer_traffic * share / self.machine.bandwidth + calls

    def _noise(self, optimizer: ZerothOrder, scheme: str, rows: int, passes: int, cost: MethodCost) -> float | None:
        """Seconds for directions: to perturb in each pass, and once to update."""
        if not (self.machine.flops and self.machine.bandwidth):
            return None
        plan = optimizer.method.query.plan(self.settings.batch_size, optimizer.draws.at(0))
        directions, trained, family = len(plan.directions), self.shape.trained[scheme], optimizer.method.draw
        rank = getattr(family, "rank", 0)
        traffic, cpu_seconds = passes * cost.evaluation_traffic + cost.update_traffic, 0.0
        if not self.machine.is_cpu:
            traffic += trained * DENSE_DIRECTION_BYTES * (1 if rank else directions)
        elif not rank:
            cpu_seconds = trained * DENSE_SECONDS * directions * (1 + passes) / 2
        else:
            tokens = rows * self.settings.tokens
            cpu_seconds = trained * (LOW_RANK_SECONDS + FACTOR_SECONDS * directions)
            cpu_seconds += tokens * self._product_elements(scheme) * ELEMENT_SECONDS
        if rank and family.modulation is not None:  # a second product, in chunks that each read all tokens
            tokens = rows * self.settings.tokens
            cpu_seconds += self.machine.threads * 2 * tokens * min(trained, self.shape.body) / self.machine.flops
            traffic += 2 * self._size * tokens * self._chunk_reads(scheme)
        return cpu_seconds / self.machine.threads + traffic / self.machine.bandwidth

    def _product_elements(self, scheme: str) -> int:
        """Elements that a token's products with trained matrices read and write."""
        return sum(n * stack * (rows + columns) for (stack, rows, columns), n in self.shape.tensors[scheme].items() if rows > 1)

    def _chunk_reads(self, scheme: str) -> float:
        """Elements that a token's products read if a matrix is made MODULATED values at a time."""
        views = self.shape.tensors[scheme].items()
        return sum(n * stack * rows * columns**2 / MODULATED for (stack, rows, columns), n in views if rows > 1)
