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
    slots: Sequence[Slot], directions: Directions, plan: Plan, objective: Objective, batch: Any, micro_batch: int | None = None
) -> torch.Tensor:
    """The loss of every expanded example: float32 (copies * examples,).

    One forward serves the whole plan, or as many as it takes to evaluate `micro_batch` examples of the batch at a time.

    An objective that returns (sums, weights) is one whose loss is total sum over total weight: each example's loss is then
    its share, so that their mean is that quotient.
    Raises ValueError when the objective does not return one loss an example, UnresolvedOperation when the model cannot
    be split by example.
    """
    count = plan.examples
    if micro_batch is None or micro_batch >= count:
        given = _evaluate(slots, directions, plan, objective, batch)
    else:
        parts = []
        for first in range(0, count, micro_batch):
            stop = min(first + micro_batch, count)
            parts.append(_evaluate(slots, directions, plan.part(first, stop), objective, batches.take(batch, count, first, stop)))
        given = [torch.cat(some, 1) for some in zip(*parts, strict=True)]
    if len(given) == 1:
        return given[0].flatten()
    sums, weights = given
    return (sums / weights.mean(1, keepdim=True)).flatten()


def _evaluate(slots: Sequence[Slot], directions: Directions, plan: Plan, objective: Objective, batch: Any) -> list[torch.Tensor]:
    """What the objective returns for the expanded batch: one or two float32 tensors (copies, examples)."""
    expanded = batches.expand(batch, plan.examples, plan.copies)
    forward = PerturbedForward(slots, directions, plan)
    for tensor in batches.tensors(expanded):
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
