"""Fitness: members of a population answer prompts, and their scores are shaped before they are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from zerograd.directions import Source
from zerograd.queries.estimates import central, leave_one_out
from zerograd.queries.plan import Plan, example_pairs, example_populations, population, shared_pairs
from zerograd.queries.query import Query, Scores, require_members

FITNESS_SHAPINGS = ("plain", "z-score", "ranks")
"""What scores are made into: nothing else, deviations from their prompt's mean over the deviation of all, or centred ranks."""


def z_scores(values: torch.Tensor) -> torch.Tensor:
    """Scores less the mean of their example, over the standard deviation of all: (branches, examples). Zero where none differ.

    Invariant to a shift of an example's scores, and to a common scale (EGGROLL's means by question and global deviation).
    """
    own = values - values.mean(0)
    deviation = own.square().mean().sqrt()
    return own / deviation if deviation > 0 else torch.zeros_like(own)


def centred_ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks of the scores less the mean of their example among all, from -1/2 to 1/2; equal ones share the mean of theirs.

    Invariant to a shift of an example's scores, and to a common scale (Salimans et al. 2017, arXiv 1703.03864).
    """
    own = (values - values.mean(0)).flatten()
    ordered = own.sort().values
    below, upto = torch.searchsorted(ordered, own), torch.searchsorted(ordered, own, right=True)
    return ((below + upto - 1) / 2 / max(1, len(own) - 1) - 0.5).view(values.shape).float()


@dataclass(frozen=True)
class Fitness(Query):
    """n directions of each example's own, or n that all examples share; from two sides, or from one against the others.

    directions: n, at least 1; with one side at least 2. shaping: one of FITNESS_SHAPINGS.
    """

    shaping: str = "z-score"
    directions: int = 2
    sides: int = 2
    shared: bool = False

    per_example: ClassVar[bool] = True
    shapings: ClassVar[tuple[str, ...]] = FITNESS_SHAPINGS

    def __post_init__(self) -> None:
        super().__post_init__()
        require_members(self.directions, self.sides)

    def plan(self, examples: int, source: Source) -> Plan:
        if self.shared:
            pairs, one_sided = shared_pairs(examples, self.directions), population(examples, self.directions, clean=False)
        else:
            pairs, one_sided = example_pairs(examples, self.directions), example_populations(examples, self.directions)
        return pairs if self.sides == 2 else one_sided

    def finite_differences(self, scores: Scores) -> torch.Tensor:
        made = {"plain": lambda values: values, "z-score": z_scores, "ranks": centred_ranks}[self.shaping](scores.values)
        own = central(made) if self.sides == 2 else leave_one_out(made)
        return own.mean(1) if self.shared else own.flatten()

    def coefficients(self, differences: torch.Tensor, radius: float) -> torch.Tensor:
        if self.shaping == "plain":
            return differences / (radius * len(differences))
        return differences / len(differences)

    def at_radius(self, coefficients: torch.Tensor, ratio: float) -> torch.Tensor:
        return coefficients * ratio if self.shaping == "plain" and ratio != 1 else coefficients
