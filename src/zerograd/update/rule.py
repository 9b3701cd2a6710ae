"""Rules: what a gradient estimate does to a trained tensor, and the memory that a rule keeps from step to step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch

from zerograd.spaces import Space
from zerograd.update.step import GroupStep
from zerograd.update.target import Chunk, Target

Kept = Mapping[str, torch.Tensor]
"""Tensors that a rule keeps beside one space, by name; it changes them in place."""


class Rule:
    """Plain SGD, and the base of the other rules: w <- (1 - lr decay) w - lr * scale * estimate. It keeps nothing.

    The memory is a function of the base and of the steps before, so that a replay makes it again and a snapshot holds
    it.
    """

    steps_drawn = 1
    """Steps whose directions an update draws, at most."""

    def init(self, space: Space) -> dict[str, torch.Tensor]:
        """The tensors kept beside a space, as they are before the first step."""
        return {}

    def numbers(self, groups: int) -> dict[str, torch.Tensor]:
        """The tensors kept for the run as a whole, as they are before the first step."""
        return {}

    def advance(self, numbers: Kept, steps: Sequence[GroupStep]) -> Sequence[GroupStep]:
        """Move the run's numbers on by one step. steps: the step in each group. Returns them as `update` takes them."""
        return steps

    def update(self, target: Target, kept: Kept, steps: Sequence[GroupStep]) -> None:
        """Do to one space what steps say, in order."""
        target.subtract_directions(steps)


class Elementwise(Rule, ABC):
    """A rule of each weight alone: it sees the estimate of some rows at a time. Tensors that it keeps have the flat
    shape.
    """

    @abstractmethod
    def change(self, chunk: Chunk, kept: Kept, step: GroupStep) -> torch.Tensor:
        """What is subtracted, over lr and scale: float32 (rows, columns). kept: the chunk's rows, to be changed in
        place.

        Every operation rounds alike everywhere: one IEEE operation an element, no fused multiply-add, no sums.
        """

    def update(self, target: Target, kept: Kept, steps: Sequence[GroupStep]) -> None:
        for step in steps:
            target.change(step, lambda chunk: self.change(chunk, rows_of(kept, chunk), chunk.step))


def rows_of(kept: Kept, chunk: Chunk) -> Kept:
    """The rows of a chunk in kept tensors."""
    return {name: tensor[chunk.rows] for name, tensor in kept.items()}


def power(base: float, exponent: int) -> float:
    """base ** exponent by repeated squaring: the same bits on every machine. exponent: at least 0."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
