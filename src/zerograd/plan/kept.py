"""What a method keeps from step to step, asked of the method itself on tensors small enough to step on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import nn

from zerograd.optim import METHODS
from zerograd.optim.base import ZerothOrder

View = tuple[int, int, int]
"""(stack, rows, columns) of a tensor, as a slot has it."""

SIDES = 256, 512
"""Sides that larger ones are told from: more than the rank of any method's factors."""


def state_bytes(method: str, tensors: Mapping[View, int]) -> float:
    """The bytes that a method keeps beside tensors, of which there are so many of each view, and their remainders."""
    return sum(count * _matrix_bytes(method, *view) for view, count in tensors.items())


def _matrix_bytes(method: str, stack: int, rows: int, columns: int) -> float:
    """Of a stack of matrices, or of a vector: what is kept grows with rows, with columns, and with both."""
    return stack * _along(rows, lambda m: _along(columns, lambda n: _asked(method, m, n)))


def _along(side: int, kept: Callable[[int], float]) -> float:
    """What is kept at a side, on the line through what is kept at the two of SIDES where it is beyond these."""
    if side <= SIDES[1]:
        return kept(side)
    first, second = map(kept, SIDES)
    return first + (second - first) * (side - SIDES[0]) / (SIDES[1] - SIDES[0])


@functools.lru_cache(maxsize=4096)
def _asked(method: str, rows: int, columns: int) -> float:
    return instance(method, rows, columns).state_bytes


def instance(method: str, rows: int = SIDES[0], columns: int = SIDES[0]) -> ZerothOrder:
    """A method over one matrix, or a vector where it has one row, after a step: to be asked what it does and keeps."""
    model = nn.Linear(columns, rows, bias=False) if rows > 1 else nn.RMSNorm(columns)
    make: Callable[..., ZerothOrder] = METHODS[method]
    made = make(model, self_check=False)
    made.step(lambda x: model(x).square().mean(1), torch.ones(2, columns))
    return made
