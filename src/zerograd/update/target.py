"""A space during an update: its directions, and the only calls that change trained values.

    w <- (1 - lr decay) w - lr scale * change

in a fixed order of directions, by plain float32 multiply and subtract: no BLAS, no fused multiply-add, so a replay is
bitwise equal on every machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch

from zerograd.directions import Directions, Draws
from zerograd.machine import workers
from zerograd.noise import ROUNDING, Address
from zerograd.spaces import Space
from zerograd.update.step import GroupStep

ROWS = 8192
"""Rows of a weight whose left factors are held at a time."""

DENSE_AT_A_TIME = 1024
"""Dense directions subtracted in one pass over a weight, at most: their keys fit in a core's cache."""

FACTORS_AT_A_TIME = 4 << 20
"""Numbers of factors held by a pass that subtracts several steps."""

Rows = Callable[[slice], torch.Tensor]
"""A function of flat rows: float32 (rows, columns)."""


@dataclass(frozen=True)
class Target:
    """One space and the directions of the run."""

    space: Space
    draws: Draws

    def directions(self, step: int) -> Directions:
        """The directions of a step."""
        return self.draws.at(step)

    def is_active(self, step: GroupStep) -> bool:
        """Whether a step has directions in this space."""
        return self.directions(step.number).is_active(self.space)

    def rounding(self, step: GroupStep) -> Address:
        """The address of the noise that rounds what a step stores."""
        return self.directions(step.number).address(self.space, domain=ROUNDING)

    def subtract_directions(self, steps: Sequence[GroupStep]) -> None:
        """w <- decay w - lr * scale * sum_i c_i z_i for steps in order.

        Steps share a pass over the weights where they can: the bits are those of one step after the other.
        """
        space, family = self.space, self.draws.family
        if family.is_modulated(space):
            for step in steps:
                self.change(step, Chunk.estimate)
            return
        rank, (stack, rows, columns) = family.rank_in(space), space.view
        most = DENSE_AT_A_TIME if not rank else max(1, FACTORS_AT_A_TIME // ((stack + rows + columns) * rank * stack))
        together: list[GroupStep] = []
        count = 0
        for step in steps:
            if not self.is_active(step):
                continue
            if together and (space.rounds or step.decay != 1 or count + len(step.coefficients) > most):
                self._subtract(together)
                together, count = [], 0
            together.append(step)
            count += len(step.coefficients)
        if together:
            self._subtract(together)

    def change(self, step: GroupStep, changed: Callable[[Chunk], torch.Tensor], estimate: Rows | None = None) -> None:
        """w <- decay w - lr * scale * changed(chunk), chunk by chunk of rows.

        changed: gives float32 (rows, columns); workers call it at once for different rows, and it gives a row as it
        would alone. estimate: what `Chunk.estimate` gives, in place of the step's own estimate, which is made in active
        spaces alone.
        """
        if estimate is None and not self.is_active(step):
            return
        factor, shared = torch.tensor(step.lr * self.space.scale, dtype=torch.float32), _Shared(estimate)
        rounding = self.rounding(step)

        def work(rows: slice) -> None:
            with torch.no_grad():
                self.space.subtract(rows, changed(Chunk(self, step, rows, shared)) * factor, step.decay, rounding)

        workers.each(work, self.space.chunks(), workers.count(self.space.device))

    def subtract(self, change: torch.Tensor, step: GroupStep) -> None:
        """w <- decay w - lr * scale * change, of all flat rows at once: float32 (stack * rows, columns)."""
        factor = torch.tensor(step.lr * self.space.scale, dtype=torch.float32)
        self.space.subtract(slice(0, self.space.flat_rows), change * factor, step.decay, self.rounding(step))

    def subtract_products(self, left: torch.Tensor, right: torch.Tensor, step: GroupStep) -> None:
        """w <- decay w - lr * scale * sum_q left_q right_q^T of each matrix: float32 (stack, q, rows) and (stack, q,
        columns).
        """
        left = left * torch.tensor(step.lr * self.space.scale, dtype=torch.float32)
        rows, rounding = self.space.view[1], self.rounding(step)
        for e in range(self.space.view[0]):
            part = slice(e * rows, (e + 1) * rows)
            self.space.subtract_products(part, left[e].contiguous(), right[e].contiguous(), step.decay, rounding)

    def _subtract(self, steps: Sequence[GroupStep]) -> None:
        """Steps that share a pass: none but the first decays, and none rounds at random beside another."""
        space, family, decay, rounding = self.space, self.draws.family, steps[0].decay, self.rounding(steps[0])
        multipliers = [step.lr * c for step in steps for c in step.coefficients]
        rank = family.rank_in(space)
        drawn = [(self.directions(step.number), range(len(step.coefficients))) for step in steps]
        if not rank:
            addresses = [one.address(space, i) for one, ids in drawn for i in ids]
            scaled = [m * space.scale for m in multipliers]
            space.subtract_noise(family.distribution, addresses, scaled, decay, rounding)
            return
        stack, rows, columns = space.view
        length = drawn[0][0].length(space)
        factor = torch.tensor([m * length for m in multipliers], dtype=torch.float32, device=space.device)[:, None, None]
        factors = [one.factors(space, ids) for one, ids in drawn]
        left = torch.cat([a for a, _ in factors]).view(-1, stack, rank, rows)
        right = torch.cat([b for _, b in factors]).view(-1, stack, rank, columns)
        for e in range(stack):
            for first in range(0, rows, ROWS):
                stop = min(first + ROWS, rows)
                a = (left[:, e, :, first:stop] * factor).reshape(-1, stop - first)
                b = right[:, e].reshape(-1, columns)
                space.subtract_products(slice(e * rows + first, e * rows + stop), a, b, decay, rounding)


class _Shared:
    """What the chunks of one step share: sums of directions, set up once."""

    def __init__(self, estimate: Rows | None) -> None:
        self.estimate = estimate
        self._made: dict[Hashable, Rows] = {}
        self._lock = threading.Lock()

    def sums(self, key: Hashable, make: Callable[[], Rows]) -> Rows:
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]


@dataclass(frozen=True)
class Chunk:
    """Some flat rows of a space in a step, in units of the space's scale."""

    target: Target
    step: GroupStep
    rows: slice
    _shared: _Shared

    def estimate(self) -> torch.Tensor:
        """The gradient estimate of the step, sum_i c_i z_i: float32 (rows, columns), to be overwritten if need be."""
        if self._shared.estimate is not None:
            return self._shared.estimate(self.rows)
        return self.estimate_of(self.step.number, self.step.coefficients)

    def estimate_of(self, step: int, coefficients: Sequence[float]) -> torch.Tensor:
        """The gradient estimate of any step, from its number and its coefficients: float32 (rows, columns)."""
        directions, space = self.target.directions(step), self.target.space
        make = self._shared.sums(step, lambda: directions.estimate(space, range(len(coefficients)), coefficients))
        return make(self.rows)

    def raw_z(self, direction: int) -> torch.Tensor:
        """z of one of the step's directions, without its modulation: float32 (rows, columns)."""
        family = replace(self.target.draws.family, modulation=None)
        directions, space = replace(self.target.directions(self.step.number), family=family), self.target.space
        return self._shared.sums(("raw", direction), lambda: directions.estimate(space, [direction], [1.0]))(self.rows)
