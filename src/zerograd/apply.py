"""From coefficients to parameters: the only place that changes weights.

    w <- (1 - lr * weight_decay) w - sum_i multiplier_i * scale * z_i

in a fixed order of directions, by plain float32 multiply and subtract: no BLAS, no fused multiply-add, so a replay is
bitwise equal on every machine. Once started it completes: an interrupt waits for its end.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

import numpy as np
import numpy.typing as npt
import torch

from zerograd import noise
from zerograd.noise import ROUNDING
from zerograd.perturb.directions import Directions, Family
from zerograd.spaces.weights import Slot

ROWS = 8192
"""Rows of a weight whose left factors are held at a time."""

MOST = 1024
"""Dense directions that a pass over a weight subtracts: their keys lie in a core's cache, and the weight is read seldom enough."""

FACTORS = 4 << 20
"""Numbers of factors that a pass holds when it subtracts several steps."""


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
    _update(slot, [directions], [ids], multipliers, decay)


def update_by(slot: Slot, family: Family, seed: int, steps: Sequence[Step], group: int) -> None:
    """Do to one slot what steps did, in one pass over its weights for as many of them as can share it: bitwise what they did one
    after the other. group: of the slot, in the steps' rows.
    """
    held: list[Step] = []
    most = MOST if not family.has_factors(slot) else max(1, FACTORS // (sum(slot.view) * family.rank * slot.view[0]))
    count = 0
    for step in steps:
        decays = step.decays is not None and step.decays[group] != 1
        if held and (slot.stochastic or decays or count + step.multipliers.shape[1] > most):
            _update_held(slot, family, seed, held, group)
            held, count = [], 0
        held.append(step)
        count += step.multipliers.shape[1]
    if held:
        _update_held(slot, family, seed, held, group)


def _update_held(slot: Slot, family: Family, seed: int, steps: Sequence[Step], group: int) -> None:
    """Steps that share a pass: none but the first decays, and none rounds at random beside another."""
    first = steps[0].decays
    directions = [Directions(family, seed, step.number) for step in steps]
    ids = [range(step.multipliers.shape[1]) for step in steps]
    multipliers = np.concatenate([step.multipliers[group] for step in steps]).tolist()
    _update(slot, directions, ids, multipliers, 1.0 if first is None else float(first[group]))


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
    scale = slot.scale / math.sqrt(family.rank)
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


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block has ended, then hand it to whoever handled it before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)
