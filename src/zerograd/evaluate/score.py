"""Scores: the losses of a batch, or of a closure, under a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zerograd.directions.family import Directions
from zerograd.evaluate import batch as batches
from zerograd.evaluate.forward import PerturbedForward
from zerograd.evaluate.micro_batch import Fit, Live, is_out_of_memory
from zerograd.evaluate.tensors import tensors
from zerograd.queries.plan import Plan, branch
from zerograd.spaces.weights import Slot

WORK = 200_000_000_000
"""Products of a weight with a vector in one pass of a population on the CPU. Larger passes are slower: their activations leave
the caches, and are allocated anew each time."""

Objective = Callable[[Any], Any]
Closure = Callable[[], Any]


def score_batch(
    slots: Sequence[Slot],
    directions: Directions,
    plan: Plan,
    objective: Objective,
    batch: Any,
    *,
    micro_batch: int | str | None = None,
    total: int | None = None,
    first: int = 0,
    fit: Fit | None = None,
) -> torch.Tensor:
    """The loss of every expanded example: float32 (copies * examples,).

    One forward serves the whole plan, or some copies of a population so large that more of them would only be slower, or as many
    as it takes to evaluate `micro_batch` examples of the batch at a time; "auto" takes as many as fit in memory. When memory
    runs out, half as many are tried, down to one.
    total, first: how many examples the batch has, and which is the first of the plan's, when the plan is for some of them only.
    fit: what is known of memory so far.

    An objective that returns (sums, weights) is one whose loss is total sum over total weight: each example's loss is then
    its share, so that their mean is that quotient.
    Raises ValueError when the objective does not return one loss an example, UnresolvedOperation when the model cannot
    be split by example.
    """
    count, fit = plan.examples, fit or Fit()
    passes = _passes(plan, slots, batch) if total is None else [plan]
    if len(passes) > 1:
        return torch.cat(
            [score_batch(slots, directions, one, objective, batch, micro_batch=micro_batch, fit=fit) for one in passes]
        )

    def evaluated(start: int, stop: int) -> list[torch.Tensor]:
        expanded, held = batches.part(batch, total or count, first + start, first + stop, plan.copies)
        return _evaluate(slots, directions, plan.part(start, stop), objective, expanded, held)

    def held_by(some: int) -> int:
        with Live() as live:
            evaluated(0, some)
        return int(live.peak)

    held = sum(t.numel() for t in tensors(batch) if t.ndim and len(t) % (total or count) == 0)
    elements = max(1, held * plan.copies // (total or count))  # of an example with its branches
    size = count if micro_batch is None or isinstance(micro_batch, str) else micro_batch
    size = fit.examples(count, elements, held_by) if micro_batch == "auto" else fit.limit(size, elements)
    parts, start = [], 0
    while start < count:
        stop = min(start + size, count)
        try:
            parts.append(evaluated(start, stop))
        except Exception as error:
            if stop - start == 1 or not is_out_of_memory(error):
                raise
        else:
            start = stop
            continue
        size = fit.halve(stop - start, elements)
    given = [torch.cat(some, 1) for some in zip(*parts, strict=True)]
    if len(given) == 1:
        return given[0].flatten()
    sums, weights = given
    return (sums / weights.mean(1, keepdim=True)).flatten()


def _passes(plan: Plan, slots: Sequence[Slot], batch: Any) -> list[Plan]:
    """The plan, or its parts of some copies each where these can be evaluated apart at no cost."""
    if not plan.is_separable or any(slot.parameter.device.type != "cpu" for slot in slots):
        return [plan]
    work = sum(slot.parameter.numel() for slot in slots) * batches.vectors(batch, plan.examples)
    some = max(1, WORK // max(1, work))
    return [plan.only(range(first, min(first + some, plan.copies))) for first in range(0, plan.copies, some)]


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
        forward.trace.mark(tensor)
    with forward:
        losses = objective(expanded)
    given = [torch.as_tensor(part) for part in (losses if isinstance(losses, tuple) else (losses,))]
    odd = [tuple(part.shape) for part in given if part.shape != (len(plan),)]
    if odd or len(given) > 2:
        shape = odd[0] if odd else f"of {len(given)} tensors"
        raise ValueError(f"objective(batch) returned shape {shape} for {len(plan)} examples; return one loss an example")
    return [forward.trace.resolved(part).float().cpu().view(plan.copies, -1) for part in given]


def score_closure(slots: Sequence[Slot], directions: Directions, plan: Plan, closure: Closure) -> torch.Tensor:
    """The losses of a closure, branch by branch of a plan for one example: float32 (branches,).

    Raises ValueError when the closure does not return a scalar.
    """
    losses = []
    for direction, sign in zip(plan.direction.tolist(), plan.sign.tolist(), strict=True):
        with PerturbedForward(slots, directions, branch(direction, sign), whole=True):
            loss = torch.as_tensor(closure()).detach()
        if loss.numel() != 1:
            raise ValueError(f"the closure returned shape {tuple(loss.shape)}; return one scalar, or call step(objective, batch)")
        losses.append(loss.float().cpu().view(1))
    return torch.cat(losses)
