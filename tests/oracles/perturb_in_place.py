"""What perturbed forwards are compared with: copies of the model whose weights were really set, evaluated by plain torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from zerograd.directions import Dense, Directions, LowRank
from zerograd.evaluate import batch as batches
from zerograd.evaluate.evaluator import Closure, LocalBatch
from zerograd.queries import Plan
from zerograd.queries import plan as plans
from zerograd.spaces import Space, collect

FAMILIES = {
    "dense-shared": (Dense("rademacher"), plans.shared_pairs),
    "dense-gaussian-each": (Dense("gaussian"), plans.example_pairs),
    "rank1-shared": (LowRank("rademacher"), plans.shared_pairs),
    "rank1-each": (LowRank("gaussian"), plans.example_pairs),
    "rank2-each": (LowRank("rademacher", 2), plans.example_pairs),
}

EPS = 0.1
"""The relative radius of perturbations."""

Objective = Callable[[nn.Module, Any], torch.Tensor]


def spaces_of(model: nn.Module, precision: str | None = None) -> list[Space]:
    """All trainable tensors, with directions in units of their rms."""
    spaces = collect(model, precision)
    for space in spaces:
        space.set_scale(relative=True)
    return spaces


def radii_of(spaces: Sequence[Space], eps: float = EPS) -> dict[int, float]:
    """The same radius in every space."""
    return {space.id: eps for space in spaces}


def scores(
    spaces: Sequence[Space],
    directions: Directions,
    plan: Plan,
    objective: Callable[[Any], Any],
    batch: Any,
    eps: float = EPS,
    **more: Any,
) -> torch.Tensor:
    """What the perturbed forward gives: the loss of every expanded example of a plan."""
    ask = LocalBatch.of(spaces, objective, batch, **more)
    return ask.scores(plan, directions, radii_of(spaces, eps)).values.flatten()


def scores_of_closure(
    spaces: Sequence[Space], directions: Directions, plan: Plan, closure: Callable[[], Any], eps: float = EPS
) -> torch.Tensor:
    """The same of a closure: one loss a branch."""
    return Closure(spaces, closure).scores(plan, directions, radii_of(spaces, eps)).values.flatten()


def moved(
    model: nn.Module, spaces: Sequence[Space], directions: Directions, direction: int, coefficient: float, eps: float = EPS
) -> nn.Module:
    """A copy of the model in float32 whose weights are W + coefficient * eps * scale * z."""
    twin = copy.deepcopy(model).float()
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for space in spaces:
            z = directions.z(space, direction)
            parameters[space.name].copy_(space.exact().view(z.shape) + z * (coefficient * eps * space.scale))
    return twin


class Twins(dict[tuple[int, float], nn.Module]):
    """Really perturbed copies of one model under one set of directions, made when first asked for by direction and coefficient."""

    def of(
        self,
        model: nn.Module,
        spaces: Sequence[Space],
        directions: Directions,
        direction: int,
        coefficient: float,
        eps: float = EPS,
    ) -> nn.Module:
        if (direction, coefficient) not in self:
            self[direction, coefficient] = moved(model, spaces, directions, direction, coefficient, eps)
        return self[direction, coefficient]


def losses(
    model: nn.Module,
    spaces: Sequence[Space],
    directions: Directions,
    plan: Plan,
    objective: Objective,
    batch: Any,
    twins: Twins | None = None,
    eps: float = EPS,
) -> torch.Tensor:
    """The loss of every expanded example of the plan, from one copy of the model a variant."""
    result = torch.empty(len(plan))
    twins = Twins() if twins is None else twins
    for variant in plan.variants():
        twin = twins.of(model, spaces, directions, variant.direction, variant.coefficient, eps)
        with torch.no_grad():
            mine = objective(twin, batches.part(batch, plan.examples, 0, plan.examples)[0])
        first = variant.first % plan.examples
        result[variant.first : variant.stop] = mine[first : first + variant.examples]
    return result
