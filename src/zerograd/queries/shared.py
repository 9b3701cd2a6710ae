"""Queries whose directions all examples of the batch share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from zerograd import noise
from zerograd.directions import Source
from zerograd.noise import CHANCE, Address
from zerograd.queries.estimates import central, leave_one_out
from zerograd.queries.plan import Plan, along, clean, population, shared_pairs
from zerograd.queries.query import Query, Scores


def shared(directions: int = 1, sides: int = 2, shaping: str = "radius") -> Query:
    """n directions from two sides, 2 n evaluations, or from one side against the clean model, n + 1 evaluations."""
    if sides not in (1, 2):
        raise ValueError(f"sides is {sides}; it must be 1 or 2")
    return CentralDifferences(shaping, directions=directions) if sides == 2 else ForwardDifferences(shaping, directions=directions)


@dataclass(frozen=True)
class _Several(Query):
    """Base of the queries of n directions. directions: n, at least `least`."""

    directions: int = 1

    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directions < self.least:
            raise ValueError(f"directions is {self.directions}; it must be at least {self.least}")


@dataclass(frozen=True)
class CentralDifferences(_Several):
    """d_i = (L(w + eps D_i) - L(w - eps D_i)) / 2."""

    def plan(self, examples: int, source: Source) -> Plan:
        return shared_pairs(examples, self.directions)

    def finite_differences(self, scores: Scores) -> torch.Tensor:
        return central(scores.branch_means())


@dataclass(frozen=True)
class ForwardDifferences(_Several):
    """d_i = L(w + eps D_i) - L(w)."""

    def plan(self, examples: int, source: Source) -> Plan:
        return population(examples, self.directions)

    def finite_differences(self, scores: Scores) -> torch.Tensor:
        losses = scores.branch_means()
        return losses[:-1] - losses[-1]


@dataclass(frozen=True)
class Peers(_Several):
    """d_i = L(w + eps D_i) - the mean loss along the other directions: no clean evaluation."""

    least = 2

    def plan(self, examples: int, source: Source) -> Plan:
        return population(examples, self.directions, clean=False)

    def finite_differences(self, scores: Scores) -> torch.Tensor:
        return leave_one_out(scores.branch_means())


@dataclass(frozen=True)
class ThreePoints(Query):
    """One direction from both sides and the clean model: eps times the derivative, and eps^2 times half the size of the
    curvature.

    coefficients: (c, k) with c = d / eps and k = |L(w + eps D) + L(w - eps D) - 2 L(w)| / (2 eps^2).
    """

    shapings = ("radius",)

    def plan(self, examples: int, source: Source) -> Plan:
        return along(examples, (1.0, -1.0, 0.0))

    def finite_differences(self, scores: Scores) -> torch.Tensor:
        plus, minus, at = scores.branch_means()
        return torch.stack([(plus - minus) / 2, (plus + minus - 2 * at).abs() / 2])

    def coefficients(self, differences: torch.Tensor, radius: float) -> torch.Tensor:
        return differences / torch.tensor([radius, radius**2], dtype=torch.float32)

    def at_radius(self, coefficients: torch.Tensor, ratio: float) -> torch.Tensor:
        return coefficients * torch.tensor([ratio, ratio**2], dtype=torch.float32)

    def first_order_differences(self, differences: torch.Tensor) -> torch.Tensor:
        return differences[:1]


@dataclass(frozen=True)
class RandomRadius(Query):
    """KerZOO: both sides at r eps, r uniform in [-1, 1], weighted by K(r) = (15 / 4) r (5 - 7 r^2).

    E[r K(r)] = 1 and E[r^3 K(r)] = 0: the first order is unbiased, and the third vanishes.
    """

    def plan(self, examples: int, source: Source) -> Plan:
        r = self.radius(source)
        return along(examples, (r, -r))

    def radius(self, source: Source) -> float:
        """r of a step: a multiple of 2^-23 with -1 <= r < 1."""
        word = noise.stream(Address(source.seed, source.step, 0, 0, CHANCE))[0]
        return (word >> 8) * 2.0**-23 - 1

    def finite_differences(self, scores: Scores) -> torch.Tensor:
        r = float(scores.plan.coefficient[0])
        return central(scores.branch_means()) * (15 / 4 * r * (5 - 7 * r * r))


@dataclass(frozen=True)
class BestOfThree(CentralDifferences):
    """Both sides, then the step, its opposite and no step at all: the one of the lowest loss is taken."""

    @property
    def evaluations(self) -> float:
        return 5

    @property
    def branches(self) -> int:
        return 3

    def refine(self, coefficients: torch.Tensor, score: Callable[[Sequence[float]], Scores]) -> torch.Tensor:
        at, there, back = score((0.0, -1.0, 1.0)).branch_means().tolist()
        best = min((at, 0.0), (there, 1.0), (back, -1.0), key=lambda pair: (math.isnan(pair[0]), pair[0]))
        return coefficients * best[1]


@dataclass(frozen=True)
class Derivative(Query):
    """The exact derivative along one direction, by a dual forward: the work of three evaluations.

    Its scores are two rows: the losses, and the derivatives.
    """

    per_example = True
    derivative = True
    shapings = ("radius",)

    @property
    def evaluations(self) -> float:
        return 3

    def plan(self, examples: int, source: Source) -> Plan:
        return clean(examples)

    def finite_differences(self, scores: Scores) -> torch.Tensor:
        return scores.values[1].mean().view(1)

    def loss(self, scores: Scores) -> float:
        return float(scores.values[0].mean())

    def coefficients(self, differences: torch.Tensor, radius: float) -> torch.Tensor:
        return differences

    def at_radius(self, coefficients: torch.Tensor, ratio: float) -> torch.Tensor:
        return coefficients
