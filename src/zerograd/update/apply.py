"""From coefficients to parameters: the only place that changes weights.

    w <- (1 - lr * weight_decay) w - sum_i multiplier_i * scale * z_i

in a fixed order of directions, by plain float32 multiply and subtract: no BLAS, no fused multiply-add, so a replay is
bitwise equal on every machine. Once started it completes: an interrupt waits for its end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from zerograd import noise
from zerograd.directions.family import Directions, Family
from zerograd.machine import workers
from zerograd.noise import ROUNDING, Address
from zerograd.spaces.weights import Slot

ROWS = 8192
"""Rows of a weight whose left factors are held at a time."""

MOST = 1024
"""Dense directions that a pass over a weight subtracts: their keys lie in a core's cache, and the weight is read seldom enough."""

FACTORS = 4 << 20
"""Numbers of factors that a pass holds when it subtracts several steps."""


CHUNK = 1 << 16
"""Values of a weight whose whole estimate is held by a worker at a time."""


Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Step:
    """What a step does to the weights, but for the directions that its number names.

    number: of the step, from 0. loss: mean of its branches. lrs: float32 (groups,), for those who read. decays: float32
    (groups,), what the weights are multiplied by first, or None where all are 1. multipliers: float32 (groups, directions), of
    directions 0, 1, ...; a tensor's scale is not in them.
    """

    number: int
    loss: float
    lrs: Floats
    decays: Floats | None
    multipliers: Floats

    def decay(self, group: int) -> float:
        """What a group's weights are multiplied by first."""
        return 1.0 if self.decays is None else float(self.decays[group])


@dataclass(frozen=True)
class Skip:
    """A step that does nothing, since its loss was not finite."""

    number: int
    loss: float


def update(slot: Slot, directions: Directions, ids: Sequence[int], multipliers: Sequence[float], decay: float) -> None:
    """Subtract the weighted sum of directions from one slot.

    ids, multipliers: the directions in order and what each is multiplied by, the slot's scale not included.
    decay: what the weights are multiplied by first; 1 for none.
    """
    if directions.family.has_shape(slot):
        change(slot, directions.sums(slot, ids, multipliers), decay, directions)
    else:
        _update(slot, [directions], [ids], multipliers, decay)


def update_by(slot: Slot, family: Family, seed: int, steps: Sequence[Step], group: int) -> None:
    """Do to one slot what steps did, in one pass over its weights for as many of them as can share it: bitwise what they did one
    after the other. group: of the slot, in the steps' rows.
    """
    held: list[Step] = []
    if family.has_shape(slot):
        change_by(slot, family, seed, steps, group, lambda estimate, rows, step: estimate)
        return
    most = MOST if not family.has_factors(slot) else max(1, FACTORS // (sum(slot.view) * family.rank * slot.view[0]))
    count = 0
    for step in steps:
        if not family.touches(slot, seed, step.number):
            continue
        if held and (slot.stochastic or step.decay(group) != 1 or count + step.multipliers.shape[1] > most):
            _update_held(slot, family, seed, held, group)
            held, count = [], 0
        held.append(step)
        count += step.multipliers.shape[1]
    if held:
        _update_held(slot, family, seed, held, group)


def change_by(
    slot: Slot,
    family: Family,
    seed: int,
    steps: Sequence[Step],
    group: int,
    changed: Callable[[torch.Tensor, slice, Step], torch.Tensor],
) -> None:
    """w <- decay w - scale * changed(estimate) for steps in order, with the whole estimate of some rows at a time.

    changed: takes the estimate, sum_i multiplier_i z_i, float32 (rows, columns) and its own to overwrite, where its rows are, and
    the step; workers call it at once for different rows. It must give any row as it would give it alone.
    """
    for step in steps:
        if family.touches(slot, seed, step.number):
            directions, multipliers = Directions(family, seed, step.number), step.multipliers[group].tolist()
            sums = directions.sums(slot, range(len(multipliers)), multipliers)
            change(slot, sums, step.decay(group), directions, functools.partial(_of_step, changed, step))


def subtract(slot: Slot, change: torch.Tensor, decay: float, directions: Directions) -> None:
    """w <- decay w - change. change: float32 (stack * rows, columns), the slot's scale in it. directions: of the step, whose noise
    rounds.
    """
    _store(slot, slice(0, len(change)), change, decay, directions.address(slot, domain=ROUNDING) if slot.stochastic else None)


def subtract_products(slot: Slot, left: torch.Tensor, right: torch.Tensor, decay: float, directions: Directions) -> None:
    """w <- decay w - sum_q left_q right_q^T of each matrix. left: float32 (stack, q, rows), the slot's scale in it. right: float32
    (stack, q, columns). directions: of the step, whose noise rounds.
    """
    rounding = directions.address(slot, domain=ROUNDING) if slot.stochastic else None
    kernels, rows = noise.backend(slot.flat), slot.view[1]
    for e in range(slot.view[0]):
        part = slice(e * rows, (e + 1) * rows)
        low = None if slot.flat_remainder is None else slot.flat_remainder[part]
        kernels.update_low_rank(slot.flat[part], low, left[e].contiguous(), right[e].contiguous(), decay, rounding, part.start)


def _store(slot: Slot, rows: slice, change: torch.Tensor, decay: float, rounding: Address | None) -> None:
    """Some rows of w <- decay w - change, rounded as they are stored."""
    low = None if slot.flat_remainder is None else slot.flat_remainder[rows]
    exact = noise.to_float(slot.flat[rows], low)
    exact = exact if decay == 1 else exact * decay
    exact = torch.where(change == 0, exact, exact - change)  # a change of 0 leaves -0.0
    noise.store(slot.flat[rows], low, exact, torch.arange(rows.start, rows.stop, device=exact.device), rounding)


def _of_step(
    changed: Callable[[torch.Tensor, slice, Step], torch.Tensor], step: Step, estimate: torch.Tensor, rows: slice
) -> torch.Tensor:
    return changed(estimate, rows, step)


def change(
    slot: Slot,
    estimates: Callable[[slice], torch.Tensor],
    decay: float,
    directions: Directions,
    changed: Callable[[torch.Tensor, slice], torch.Tensor] = lambda estimate, rows: estimate,
) -> None:
    """w <- decay w - scale * changed(estimate). estimates: gives the estimate of some flat rows. changed: as in `change_by`, for
    one step. directions: of the step, whose noise rounds.
    """
    stack, height, columns = slot.view
    rounding = directions.address(slot, domain=ROUNDING) if slot.stochastic else None
    each = max(1, CHUNK // columns)

    def work(first: int) -> None:
        rows = slice(first, min(first + each, stack * height))
        with torch.no_grad():
            _store(slot, rows, changed(estimates(rows), rows) * slot.scale, decay, rounding)

    workers.each(work, range(0, stack * height, each), workers.count(slot.flat.device))


def _update_held(slot: Slot, family: Family, seed: int, steps: Sequence[Step], group: int) -> None:
    """Steps that share a pass: none but the first decays, and none rounds at random beside another."""
    directions = [Directions(family, seed, step.number) for step in steps]
    ids = [range(step.multipliers.shape[1]) for step in steps]
    multipliers = np.concatenate([step.multipliers[group] for step in steps]).tolist()
    _update(slot, directions, ids, multipliers, steps[0].decay(group))


def _update(
    slot: Slot, directions: Sequence[Directions], ids: Sequence[Sequence[int]], multipliers: Sequence[float], decay: float
) -> None:
    """Directions of one step or of several, in order."""
    flat, remainder = slot.flat, slot.flat_remainder
    kernels = noise.backend(flat)
    rounding = directions[0].address(slot, domain=ROUNDING) if slot.stochastic else None
    family = directions[0].family
    pairs = list(zip(directions, ids, strict=True))
    if not family.has_factors(slot):
        addresses = [one.address(slot, i) for one, some in pairs for i in some]
        scaled = [m * slot.scale for m in multipliers]
        kernels.update(flat, remainder, family.distribution, addresses, scaled, decay, rounding)
        return
    stack, rows, columns = slot.view
    scale = slot.scale * family.unit(slot)
    factor = torch.tensor([m * scale for m in multipliers], dtype=torch.float32, device=flat.device)[:, None, None]
    right = torch.cat([one.right(slot, some) for one, some in pairs]).view(-1, stack, family.rank, columns)
    left = torch.cat([one.left(slot, some) for one, some in pairs]).view(-1, stack, family.rank, rows)
    for e in range(stack):
        for first in range(0, rows, ROWS):
            stop = min(first + ROWS, rows)
            part = slice(e * rows + first, e * rows + stop)
            a = (left[:, e, :, first:stop] * factor).reshape(-1, stop - first)
            b = right[:, e].reshape(-1, columns)
            low = None if remainder is None else remainder[part]
            kernels.update_low_rank(flat[part], low, a, b, decay, rounding, part.start)
