"""What a query is: the perturbed copies that a step scores, and the coefficients that their scores give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from zerograd.directions import Source
from zerograd.queries.estimates import SHAPINGS, standardise
from zerograd.queries.plan import Plan


@dataclass(frozen=True, eq=False)
class Scores:
    """The losses of a plan: float32 (branches, examples), on the CPU."""

    plan: Plan
    values: torch.Tensor

    def branch_means(self) -> torch.Tensor:
        """The mean loss of each branch: float32 (branches,)."""
        return self.values.mean(1)


@dataclass(frozen=True)
class Query(ABC):
    """Base of the queries.

    shaping: what a finite difference is divided by: "radius" for the plain estimate, "deviation" for the standard
    deviation of the differences, "size" for its own absolute value.
    """

    shaping: str = "radius"

    per_example: ClassVar[bool] = False
    """Whether it needs one loss an example, so that it cannot score a closure."""

    derivative: ClassVar[bool] = False
    """Whether it asks for exact derivatives along directions, and perturbs nothing."""

    shapings: ClassVar[tuple[str, ...]] = SHAPINGS
    """The shapings that it has."""

    def __post_init__(self) -> None:
        if self.shaping not in self.shapings:
            raise ValueError(f"shaping is {self.shaping!r}; choose one of {', '.join(self.shapings)}")

    @property
    def evaluations(self) -> float:
        """How often a step evaluates the batch."""
        return self.branches

    @property
    def branches(self) -> int:
        """How often the largest pass of a step repeats the batch."""
        return self.plan(1, Source(0, 0)).branches

    @abstractmethod
    def plan(self, examples: int, source: Source) -> Plan:
        """The copies of the model that a step scores. source: of the step's random numbers."""

    @abstractmethod
    def finite_differences(self, scores: Scores) -> torch.Tensor:
        """The radius times the derivative along each direction: float32 (directions,)."""

    def loss(self, scores: Scores) -> float:
        """The mean loss of the branches."""
        return float(scores.values.mean())

    def coefficients(self, differences: torch.Tensor, radius: float) -> torch.Tensor:
        """What each direction is multiplied by in the gradient estimate: float32 (directions,). radius: eps of the
        first group.
        """
        if self.shaping == "deviation":
            return standardise(differences) / len(differences)
        if self.shaping == "size":
            return differences.sign() / len(differences)
        return differences / (radius * len(differences))

    def at_radius(self, coefficients: torch.Tensor, ratio: float) -> torch.Tensor:
        """The coefficients for another group. ratio: the first group's radius over the group's own."""
        return coefficients * ratio if self.shaping == "radius" and ratio != 1 else coefficients

    def first_order_differences(self, differences: torch.Tensor) -> torch.Tensor:
        """The differences that are the radius times a first derivative, where others are of the second."""
        return differences

    def refine(self, coefficients: torch.Tensor, score: Callable[[Sequence[float]], Scores]) -> torch.Tensor:
        """The coefficients after more evaluations of the batch.

        score: scores points along direction 0, in units of the step that its coefficient would take.
        """
        return coefficients


def require_members(directions: int, sides: int) -> None:
    """Raises ValueError for a number of an example's directions, or of their sides, that gives no difference."""
    if sides not in (1, 2):
        raise ValueError(f"sides is {sides}; it must be 1 or 2")
    if directions < 3 - sides:
        needs = "one side needs at least 2" if sides == 1 else "it must be at least 1"
        raise ValueError(f"directions is {directions}; {needs}")


@dataclass(frozen=True)
class NoQuery(Query):
    """No evaluation at all: for methods that follow the gradient alone."""

    def plan(self, examples: int, source: Source) -> Plan:
        empty = torch.zeros(0, dtype=torch.float32)
        return Plan(examples, empty.long(), empty)

    def finite_differences(self, scores: Scores) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.float32)

    def coefficients(self, differences: torch.Tensor, radius: float) -> torch.Tensor:
        return differences
