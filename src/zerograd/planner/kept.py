"""What a method keeps and moves, asked of the method itself on tensors small enough to step on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from zerograd.optim import METHODS
from zerograd.optim.base import ZerothOrder
from zerograd.planner.moved import Moved

View = tuple[int, int, int]
"""(stack, rows, columns) of a tensor, as a slot has it."""

SIDES = 128, 256
"""Sides that larger ones are told from: more than the rank of any method's factors."""


class Kept(NamedTuple):
    """Bytes that a method keeps from step to step, that it moves in a pass for its directions alone, and in an update.

    What kernels move that draw and add in one go is not in these: it is the weights, and little beside. Nor is what follows a
    gradient.
    """

    state: float
    evaluated: float
    updated: float


def of(method: str, tensors: Mapping[View, int]) -> Kept:
    """What a method keeps and moves of tensors, of which there are so many of each view."""
    found = [(count * stack, _of_matrix(method, rows, columns)) for (stack, rows, columns), count in tensors.items()]
    return Kept(*(sum(count * one[i] for count, one in found) for i in range(len(Kept._fields))))


def instance(method: str, model: nn.Module | None = None) -> ZerothOrder:
    """A method over a model of one small tensor, to be asked what its steps are."""
    make: Callable[..., ZerothOrder] = METHODS[method]
    return make(nn.Linear(2, 2) if model is None else model, self_check=False)


def _of_matrix(method: str, rows: int, columns: int) -> Kept:
    """Of a matrix, or of a vector: it grows with rows, with columns, and with both."""
    return _along(rows, lambda m: _along(columns, lambda n: _asked(method, m, n)))


def _along(side: int, at: Callable[[int], Kept]) -> Kept:
    """What it is at a side, on the line through what it is at the two of SIDES where it is beyond these."""
    if side <= SIDES[1]:
        return at(side)
    pairs = zip(*map(at, SIDES), strict=True)
    return Kept(*(first + (second - first) * (side - SIDES[0]) / (SIDES[1] - SIDES[0]) for first, second in pairs))


@functools.lru_cache(maxsize=4096)
def _asked(method: str, rows: int, columns: int) -> Kept:
    """What a method keeps and moves of one tensor, in a step after as many as it remembers."""
    model = (nn.Linear(columns, rows, bias=False) if rows > 1 else nn.RMSNorm(columns)).to(torch.bfloat16)
    made, batch = instance(method, model), torch.ones(2, columns, dtype=torch.bfloat16)
    moved: dict[str, int] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what other threads move is not seen
    try:
        for _ in range(getattr(made.held, "history", 1)):
            made.step(lambda x: model(x).float().square().mean(1), batch)
        for part, name in ((made, "_batch_scores"), (made.held, "update")):
            setattr(part, name, _counted(getattr(part, name), name, moved))
        made.step(lambda x: model(x).float().square().mean(1), batch)
    finally:
        torch.set_num_threads(threads)
    return Kept(made.state_bytes, moved.get("_batch_scores", 0), moved.get("update", 0))


def _counted(run: Callable[..., Any], name: str, moved: dict[str, int]) -> Callable[..., Any]:
    def counted(*given: Any, **named: Any) -> Any:
        with Moved() as counting:
            made = run(*given, **named)
        moved[name] = moved.get(name, 0) + counting.bytes
        return made

    return counted
