"""What perturbed forwards are compared with: copies of the model whose weights were really set, evaluated by plain torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from zerograd.directions.family import Directions, Family
from zerograd.evaluate import batch as batches
from zerograd.queries import plan as plans
from zerograd.queries.plan import Plan
from zerograd.spaces import weights
from zerograd.spaces.weights import Slot

FAMILIES = {
    "dense-shared": (Family("rademacher"), plans.shared_pairs),
    "dense-gaussian-each": (Family("gaussian"), plans.example_pairs),
    "rank1-shared": (Family("rademacher", 1), plans.shared_pairs),
    "rank1-each": (Family("gaussian", 1), plans.example_pairs),
    "rank2-each": (Family("rademacher", 2), plans.example_pairs),
}

Objective = Callable[[nn.Module, Any], torch.Tensor]


def slots_of(model: nn.Module, storage: str | None = None, eps: float = 0.1) -> list[Slot]:
    """All trainable tensors, perturbed by eps times their rms."""
    slots = weights.collect(model, storage)
    weights.set_scale(slots, relative=True)
    for slot in slots:
        slot.eps = eps
    return slots


def moved(model: nn.Module, slots: Sequence[Slot], directions: Directions, direction: int, sign: float) -> nn.Module:
    """A copy of the model in float32 whose weights are W + sign * eps * scale * z."""
    twin = copy.deepcopy(model).float()
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for slot in slots:
            z = directions.z(slot, direction)
            parameters[slot.name].copy_(slot.exact() + z * (sign * slot.eps * slot.scale))
    return twin


class Twins(dict[tuple[int, float], nn.Module]):
    """Really perturbed copies of one model under one set of directions, made when first asked for by direction and sign."""

    def of(self, model: nn.Module, slots: Sequence[Slot], directions: Directions, direction: int, sign: float) -> nn.Module:
        if (direction, sign) not in self:
            self[direction, sign] = moved(model, slots, directions, direction, sign)
        return self[direction, sign]


def losses(
    model: nn.Module,
    slots: Sequence[Slot],
    directions: Directions,
    plan: Plan,
    objective: Objective,
    batch: Any,
    twins: Twins | None = None,
) -> torch.Tensor:
    """The loss of every expanded example of the plan, from one copy of the model a variant."""
    count = len(plan) // plan.copies
    result = torch.empty(len(plan))
    twins = Twins() if twins is None else twins
    for variant in plan.variants:
        twin = twins.of(model, slots, directions, variant.direction, variant.sign)
        with torch.no_grad():
            mine = objective(twin, batches.part(batch, count, 0, count)[0])
        result[variant.examples] = mine[variant.examples % count]
    return result
