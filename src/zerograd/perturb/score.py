"""Scores: the losses of a batch, or of a closure, under a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zerograd.perturb import batch as batches
from zerograd.perturb.directions import Directions
from zerograd.perturb.forward import PerturbedForward
from zerograd.perturb.plan import Plan, branch
from zerograd.spaces.weights import Slot

Objective = Callable[[Any], Any]
Closure = Callable[[], Any]


def score_batch(
    slots: Sequence[Slot],
    directions: Directions,
    plan: Plan,
    objective: Objective,
    batch: Any,
    *,
    micro_batch: int | None = None,
    total: int | None = None,
) -> torch.Tensor:
    """The loss of every expanded example: float32 (copies * examples,).

    One forward serves the whole plan, or as many as it takes to evaluate `micro_batch` examples of the batch at a time.
    total: how many examples the batch has, when the plan is for its first ones only.

    An objective that returns (sums, weights) is one whose loss is total sum over total weight: each example's loss is then
    its share, so that their mean is that quotient.
    Raises ValueError when the objective does not return one loss an example, UnresolvedOperation when the model cannot
    be split by example.
    """
    count = plan.examples
    parts = []
    for first in range(0, count, micro_batch or count):
        stop = min(first + (micro_batch or count), count)
        expanded, held = batches.part(batch, total or count, first, stop, plan.copies)
        parts.append(_evaluate(slots, directions, plan.part(first, stop), objective, expanded, held))
    given = [torch.cat(some, 1) for some in zip(*parts, strict=True)]
    if len(given) == 1:
        return given[0].flatten()
    sums, weights = given
    return (sums / weights.mean(1, keepdim=True)).flatten()


def _evaluate(
    slots: Sequence[Slot],
    directions: Directions,
    plan: Plan,
    objective: Objective,
    expanded: Any,
    held: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """What the objective returns for the expanded batch, whose tensors `held` hold its examples: float32 (copies, examples)."""
    forward = PerturbedForward(slots, directions, plan)
    for tensor in held:
        forward.mark(tensor)
    with forward:
        losses = objective(expanded)
    given = [torch.as_tensor(part) for part in (losses if isinstance(losses, tuple) else (losses,))]
    odd = [tuple(part.shape) for part in given if part.shape != (len(plan),)]
    if odd or len(given) > 2:
        shape = odd[0] if odd else f"of {len(given)} tensors"
        raise ValueError(f"objective(batch) returned shape {shape} for {len(plan)} examples; return one loss an example")
    return [forward.resolved(part).float().view(plan.copies, -1) for part in given]


def score_closure(slots: Sequence[Slot], directions: Directions, sign: float, closure: Closure) -> torch.Tensor:
    """The loss of one branch: float32 (1,). Raises ValueError when the closure does not return a scalar."""
    with PerturbedForward(slots, directions, branch(0, sign), whole=True):
        loss = torch.as_tensor(closure()).detach()
    if loss.numel() != 1:
        raise ValueError(f"the closure returned shape {tuple(loss.shape)}; return one scalar, or call step(objective, batch)")
    return loss.float().view(1)
