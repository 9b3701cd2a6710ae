"""Checks before the first step: the objective is pure, and the perturbed forward perturbs what it should."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch

from zerograd.directions import Directions
from zerograd.errors import NotPure, SelfCheckFailed
from zerograd.evaluate.evaluator import Evaluator
from zerograd.queries import Variant
from zerograd.spaces import Space

ROUNDING, ROUNDING_16 = 1e-5, 2e-3
"""Differences of two equal runs, relative to the loss, that libraries explain, in float32 and in 16-bit models: the
order of a product's sums may depend on where its operands lie in memory.
"""

RADII = (0.1, 0.5)
"""Relative smoothing radii of the self-check: large, so that a missed perturbation cannot hide in rounding."""

FLOOR = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Differences of losses, relative to the loss, that rounding explains; in 16 bits 0.02, or as much as the model is seen
to have.
"""

LEAST_RADIUS = 2**-8
"""A change that a 16-bit weight just holds: its effect on the losses, beside the true one, is rounding."""


def is_pure(evaluator: Evaluator, directions: Directions, spaces: Sequence[Space]) -> bool:
    """Evaluate the clean model up to three times and compare. Returns False when a loss is not finite, which proves
    nothing.

    Raises NotPure when two runs differ by more than rounding.
    """

    exact = all(space.read_as == torch.float32 for space in spaces)
    losses, gap, allowed = evaluator.clean(directions), math.inf, 0.0
    for _ in range(2):  # a process's first run may differ from all others: libraries choose their kernels in it
        before, losses = losses, evaluator.clean(directions)
        if not bool(torch.isfinite(before).all() and torch.isfinite(losses).all()):
            return False
        gap = float((before - losses).abs().max())
        allowed = (ROUNDING if exact else ROUNDING_16) * (1 + float(losses.abs().max()))
        if gap <= allowed:
            return True
    raise NotPure(
        f"the objective is not pure: two runs on the same weights and batch differ by {gap:.3g}; "
        "switch dropout off with model.eval(), and draw data and samples outside it"
    )


def self_check(evaluator: Evaluator, directions: Directions, spaces: Sequence[Space], *, every: bool) -> int:
    """Perturb one tensor at a time, once in the forward and once for real, and compare the losses of a few examples.

    every: all tensors; otherwise the first and last of each kind, kinds being names with their numbers left out.
    Returns the number of tensors compared. A tensor is perturbed in place and its bits are put back, so a view of it
    that torch does not see is noticed too.
    Raises SelfCheckFailed naming the tensor.
    """
    chosen = list(spaces) if every else _of_each_kind(spaces)
    check = _Check(evaluator, directions)
    rounding = check.rounding(chosen)
    for space in chosen:
        check.compare(space, rounding)
    return len(chosen)


class _Check:
    """The self-check of one evaluator: a few examples, the smallest plan for them, and their clean losses."""

    def __init__(self, evaluator: Evaluator, directions: Directions) -> None:
        self.evaluator, self.plan = evaluator.sample()
        self.directions = directions.everywhere()
        self.clean = self._plain()

    def rounding(self, spaces: Sequence[Space]) -> float:
        """How far the losses of a 16-bit model itself jump when some of its tensors really change by the least that
        they can.
        """
        moved = [self.clean]
        coarse = [space for space in spaces if space.read_as not in FLOOR]
        variant = next(self.plan.variants())
        for space in ([space for space in coarse if space.is_matrix] or coarse)[:4]:
            radius = _radius(space, LEAST_RADIUS)
            moved += [self._real(space, variant.direction, sign * radius) for sign in (1.0, -1.0)]
        jumps = float((torch.stack(moved) - self.clean).abs().max())
        return 2 * jumps if math.isfinite(jumps) else 0.0

    def compare(self, space: Space, rounding: float) -> None:
        """Raises SelfCheckFailed when the perturbed forward of a space is not that of really perturbed weights."""
        tolerance = 0.02 if space.read_as == torch.float32 else 0.25
        floor = max(rounding, FLOOR.get(space.read_as, 0.02) * (1 + float(self.clean.abs().max())))
        for relative in RADII:
            radius = _radius(space, relative)
            mine = self.evaluator.on([space]).scores(self.plan, self.directions, {space.id: radius}).values.flatten()
            real = torch.cat([self._examples_of(variant, space, radius) for variant in self.plan.variants()])
            if not bool(torch.isfinite(real).all() and torch.isfinite(mine).all()):
                return
            error = float((mine - real).abs().max())
            at = self.clean.repeat(self.plan.branches)
            ours, effect = (float((moved - at).abs().max()) for moved in (mine, real))
            if max(ours, effect) <= 8 * floor and relative != RADII[-1]:
                continue  # rounding may hide a fault here, or look like one
            if error > tolerance * effect + floor:
                raise SelfCheckFailed(
                    f"{space.name}: the perturbed forward changes the loss by {ours:.3g}, really perturbed weights by "
                    f"{effect:.3g}; the model uses it in a way that is not understood: freeze it, or pass a closure"
                )
            return

    def _examples_of(self, variant: Variant, space: Space, radius: float) -> torch.Tensor:
        """The losses of a variant's expanded examples with the space really perturbed."""
        losses = self._real(space, variant.direction, variant.coefficient * radius)
        first = variant.first % len(losses)
        return losses[first : first + variant.examples]

    def _real(self, space: Space, direction: int, coefficient: float) -> torch.Tensor:
        """The losses with the tensor perturbed in place: (examples,)."""
        z = self.directions.z(space, direction).view(space.flat_rows, -1)
        with space.shown(space.exact() + z * (coefficient * space.scale)):
            return self._plain()

    def _plain(self) -> torch.Tensor:
        """The losses with the weights in place, without a perturbed forward: (examples,)."""
        return self.evaluator.on([]).clean(self.directions)


def _radius(space: Space, relative: float) -> float:
    """The smoothing radius that is a given multiple of a tensor's rms."""
    rms = math.sqrt(float(space.exact().square().mean(dtype=torch.float64))) or space.scale
    return relative * rms / space.scale


def _of_each_kind(spaces: Sequence[Space]) -> list[Space]:
    kinds: dict[str, list[Space]] = {}
    for space in spaces:
        kinds.setdefault(re.sub(r"\d+", "#", space.name), []).append(space)
    return [space for kind in kinds.values() for space in dict.fromkeys((kind[0], kind[-1]))]
