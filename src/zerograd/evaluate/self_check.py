"""The self-check: the perturbed forward against a model whose weights were really perturbed, tensor by tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch

from zerograd.directions.family import Directions
from zerograd.machine.interrupts import uninterrupted
from zerograd.queries.plan import Plan
from zerograd.spaces.weights import Slot

RADII = (0.1, 0.5)
"""Relative smoothing radii of the check: large, so that a missed perturbation cannot hide in rounding."""

FLOOR = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Differences of losses, relative to the loss, that rounding explains; in 16 bits 0.02, or as much as the model is seen to have."""

LEAST_RADIUS = 2**-8
"""A change that a 16-bit weight just holds: what it does to the losses, beside its true effect, is rounding."""


class SelfCheckFailed(RuntimeError):
    """The perturbed forward disagrees with really perturbed weights."""


def self_check(
    slots: Sequence[Slot],
    directions: Directions,
    plan: Plan,
    score: Callable[[Sequence[Slot]], torch.Tensor],
    plain: Callable[[], torch.Tensor],
    *,
    every: bool,
) -> int:
    """Perturb one tensor at a time, once in the forward and once for real, and compare the losses.

    plan: a few examples. score(slots): the losses under the plan with only these slots perturbed, (copies * examples,).
    plain(): the losses of the examples with the weights in place, (examples,). every: all tensors; otherwise the first and last
    of each kind, kinds being names with their numbers left out.
    Returns the number of tensors compared. A tensor is perturbed in place and its bits are put back, so a view of it that torch
    does not see is noticed too.
    Raises SelfCheckFailed naming the tensor.
    """
    chosen = list(slots) if every else _of_each_kind(slots)
    clean = plain()
    rounding = _rounding(chosen, directions, plan, plain, clean)
    for slot in chosen:
        _compare(slot, directions, plan, score, plain, clean, rounding)
    return len(chosen)


def _rounding(
    slots: Sequence[Slot], directions: Directions, plan: Plan, plain: Callable[[], torch.Tensor], clean: torch.Tensor
) -> float:
    """How far the losses of a 16-bit model itself jump when some of its tensors really change by the least that they can."""
    moved = [clean]
    coarse = [slot for slot in slots if slot.parameter.dtype not in FLOOR]
    for slot in ([slot for slot in coarse if slot.is_matrix] or coarse)[:4]:
        eps = slot.eps
        try:
            slot.eps = _radius(slot, LEAST_RADIUS)
            moved += [_really(slot, directions, plan.variants[0].direction, sign, plain) for sign in (1.0, -1.0)]
        finally:
            slot.eps = eps
    jumps = float((torch.stack(moved) - clean).abs().max())
    return 2 * jumps if math.isfinite(jumps) else 0.0


def _radius(slot: Slot, relative: float) -> float:
    """The smoothing radius that is so much of a tensor's rms."""
    rms = math.sqrt(float(slot.exact().square().mean(dtype=torch.float64))) or slot.scale
    return relative * rms / slot.scale


def _compare(
    slot: Slot,
    directions: Directions,
    plan: Plan,
    score: Callable[[Sequence[Slot]], torch.Tensor],
    plain: Callable[[], torch.Tensor],
    clean: torch.Tensor,
    rounding: float,
) -> None:
    tolerance = 0.02 if slot.parameter.dtype == torch.float32 else 0.25
    floor = max(rounding, FLOOR.get(slot.parameter.dtype, 0.02) * (1 + float(clean.abs().max())))
    eps = slot.eps
    try:
        for radius in RADII:
            slot.eps = _radius(slot, radius)
            mine = score([slot])
            real = torch.empty_like(mine)
            for variant in plan.variants:
                real[variant.examples] = _really(slot, directions, variant.direction, variant.sign, plain)[
                    variant.examples % len(clean)
                ]
            if not bool(torch.isfinite(real).all() and torch.isfinite(mine).all()):
                return
            error = float((mine - real).abs().max())
            ours, effect = (float((moved - clean.repeat(plan.copies)).abs().max()) for moved in (mine, real))
            if max(ours, effect) <= 8 * floor and radius != RADII[-1]:
                continue  # rounding may hide a fault here, or look like one
            if error > tolerance * effect + floor:
                raise SelfCheckFailed(
                    f"{slot.name}: the perturbed forward changes the loss by {ours:.3g}, really perturbed weights by {effect:.3g}; "
                    "the model uses it in a way that is not understood: freeze it, or pass a closure"
                )
            return
    finally:
        slot.eps = eps


def _really(slot: Slot, directions: Directions, direction: int, sign: float, plain: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The losses with the tensor perturbed in place, as an update would change it; its bits are put back whatever happens."""
    storage = slot.parameter.data
    before = storage.clone()
    moved = slot.exact() + directions.z(slot, direction) * (sign * slot.eps * slot.scale)
    try:
        storage.copy_(moved)
        return plain()
    finally:
        with uninterrupted():
            slot.parameter.data = storage  # a forward may have put other data there
            storage.copy_(before)


def _of_each_kind(slots: Sequence[Slot]) -> list[Slot]:
    kinds: dict[str, list[Slot]] = {}
    for slot in slots:
        kinds.setdefault(re.sub(r"\d+", "#", slot.name), []).append(slot)
    return [slot for kind in kinds.values() for slot in dict.fromkeys((kind[0], kind[-1]))]
