"""Queries with directions of each example's own: n B of them for a batch of B examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zerograd.directions import Source
from zerograd.queries.estimates import central, leave_one_out
from zerograd.queries.plan import Plan, example_pairs, example_populations
from zerograd.queries.query import Query, Scores, require_members


@dataclass(frozen=True)
class PerExample(Query):
    """Two sides: d_bi = (l_b(w + eps D_bi) - l_b(w - eps D_bi)) / 2. One side: l_b(w + eps D_bi) minus the mean along
    the example's other directions.

    directions: n of each example, at least 1; with one side at least 2. sides: 2 or 1.
    """

    directions: int = 1
    sides: int = 2

    per_example = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_members(self.directions, self.sides)

    def plan(self, examples: int, source: Source) -> Plan:
        if self.sides == 2:
            return example_pairs(examples, self.directions)
        return example_populations(examples, self.directions)

    def finite_differences(self, scores: Scores) -> torch.Tensor:
        own = central(scores.values) if self.sides == 2 else leave_one_out(scores.values)
        return own.flatten()
