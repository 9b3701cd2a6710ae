"""The memory and the memory traffic of a method, measured by steps of the method on small tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from zerograd.evaluate.evaluator import LocalBatch
from zerograd.optim import METHODS
from zerograd.optim.base import ZerothOrder
from zerograd.planner.traffic import TrafficCounter
from zerograd.update import Step

View = tuple[int, int, int]
"""(stack, rows, columns) of a tensor, as its space has them."""

SAMPLE_SIDES = 128, 256
"""Sides that larger sides are extrapolated from; both exceed the rank of every method's factors."""


class MethodCost(NamedTuple):
    """Bytes of a method's memory, and bytes that it moves in an evaluation for its directions alone and in an update.

    Fused draw-and-add kernels are not counted: they move little beside the weights. Nor are updates that follow a
    gradient.
    """

    state: float
    evaluation_traffic: float
    update_traffic: float


def cost_of(method: str, tensors: Mapping[View, int]) -> MethodCost:
    """The cost of a method on tensors. tensors: the number of tensors of each view."""
    costs = [(count * stack, _cost_of_matrix(method, rows, columns)) for (stack, rows, columns), count in tensors.items()]
    return MethodCost(*(sum(count * one[i] for count, one in costs) for i in range(len(MethodCost._fields))))


def small_optimizer(method: str, model: nn.Module | None = None) -> ZerothOrder:
    """An optimiser of the method, by default on a model of one small layer."""
    make: Callable[..., ZerothOrder] = METHODS[method]
    return make(nn.Linear(2, 2) if model is None else model, self_check=False)


def _cost_of_matrix(method: str, rows: int, columns: int) -> MethodCost:
    """The cost on one matrix or vector, linear in its rows and in its columns beyond SAMPLE_SIDES."""
    return _extrapolated(rows, lambda m: _extrapolated(columns, lambda n: _measured(method, m, n)))


def _extrapolated(side: int, at: Callable[[int], MethodCost]) -> MethodCost:
    """The cost at a side: measured up to the larger of SAMPLE_SIDES, beyond by the line through both."""
    if side <= SAMPLE_SIDES[1]:
        return at(side)
    low, high = SAMPLE_SIDES
    pairs = zip(at(low), at(high), strict=True)
    return MethodCost(*(first + (second - first) * (side - low) / (high - low) for first, second in pairs))


@functools.lru_cache(maxsize=4096)
def _measured(method: str, rows: int, columns: int) -> MethodCost:
    """The cost on one tensor, in a step after as many steps as the method's updates draw again."""
    model = (nn.Linear(columns, rows, bias=False) if rows > 1 else nn.RMSNorm(columns)).to(torch.bfloat16)
    optimizer, batch = small_optimizer(method, model), torch.ones(2, columns, dtype=torch.bfloat16)

    def objective(x: torch.Tensor) -> torch.Tensor:
        losses: torch.Tensor = model(x).float().square().mean(1)
        return losses

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # TrafficCounter counts this thread alone
    try:
        for _ in range(optimizer.method.rule.steps_drawn):
            optimizer.step(objective, batch)
        if optimizer.method.takes_backward:
            return MethodCost(optimizer.state_bytes, 0, 0)
        query, directions = optimizer.method.query, optimizer.draws.at(optimizer.steps)
        with TrafficCounter() as evaluated:
            scores = LocalBatch.of(optimizer.spaces, objective, batch).scores(
                query.plan(2, directions), directions, optimizer.radii
            )
        coefficients = query.coefficients(query.finite_differences(scores), optimizer.param_groups[0]["eps"]).numpy()
        lrs, radii = (np.array([group[name] for group in optimizer.param_groups], np.float32) for name in ("lr", "eps"))
        with TrafficCounter() as updated:
            optimizer.memory.follow([Step(optimizer.steps, 0.0, coefficients, lrs, radii)])
    finally:
        torch.set_num_threads(threads)
    return MethodCost(optimizer.state_bytes, evaluated.bytes, updated.bytes)
