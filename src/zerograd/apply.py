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
from types import FrameType

import torch

from zerograd import noise
from zerograd.noise import ROUNDING
from zerograd.perturb.directions import Directions
from zerograd.spaces.weights import Slot

ROWS = 8192
"""Rows of a weight whose left factors are held at a time."""


def update(slot: Slot, directions: Directions, ids: Sequence[int], multipliers: Sequence[float], decay: float) -> None:
    """Subtract the weighted sum of directions from one slot.

    ids, multipliers: the directions in order and what each is multiplied by, the slot's scale not included.
    decay: what the weights are multiplied by first; 1 for none.
    """
    flat, remainder = slot.flat, slot.flat_remainder
    kernels = noise.backend(flat)
    rounding = directions.address(slot, domain=ROUNDING) if slot.stochastic else None
    family = directions.family
    if not family.has_factors(slot):
        addresses = [directions.address(slot, i) for i in ids]
        scaled = [m * slot.scale for m in multipliers]
        kernels.update(flat, remainder, family.distribution, addresses, scaled, decay, rounding)
        return
    stack, rows, columns = slot.view
    scale = slot.scale / math.sqrt(family.rank)
    factor = torch.tensor([m * scale for m in multipliers], dtype=torch.float32, device=flat.device)[:, None, None]
    right = directions.right(slot, ids).view(len(ids), stack, family.rank, columns)
    left = directions.left(slot, ids).view(len(ids), stack, family.rank, rows)
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
