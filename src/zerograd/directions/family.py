"""Families: what a direction is in a space, and which spaces a step has directions in.

A direction is the tensor scale * z, with z of unit variance:

    dense      z has independent entries
    low rank   z = (1 / sqrt r) sum_j a_j b_j^T for a matrix, dense for a vector (`low_rank`, `subspace`)

Either is multiplied entry by entry by a modulation, where the family has one (`modulation`), and either may be confined
to some layers a step (`blocks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from zerograd.directions.source import Source
from zerograd.noise import FAMILIES
from zerograd.spaces import Space

DISTRIBUTIONS = tuple(FAMILIES)


class Modulation(Protocol):
    """What the entries of a space's directions are multiplied by. It gives the same bits in the evaluation and in the
    update.
    """

    def applies(self, space: Space) -> bool:
        """Whether this space's directions are multiplied by anything but ones."""

    def values(self, source: Source, space: Space, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        """The factors at some flat rows and columns of a space: float32 (rows, columns)."""


class Activity(Protocol):
    """Which spaces a step has directions in."""

    def init(self, spaces: Sequence[Space]) -> None:
        """Learn all spaces of the run, before the first step."""

    def is_active(self, space: Space, seed: int, step: int) -> bool:
        """Whether a step perturbs and updates a space."""


@dataclass(frozen=True)
class Family:
    """Base of the families; a family that says no more has dense directions.

    distribution: of the entries, or of the factors' entries. modulation: what entries are multiplied by. activity:
    which spaces a step has directions in; None for all.
    """

    distribution: str = "rademacher"
    modulation: Modulation | None = field(default=None, compare=False, kw_only=True)
    activity: Activity | None = field(default=None, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution {self.distribution!r} is not one of {', '.join(DISTRIBUTIONS)}")

    @property
    def nbytes(self) -> int:
        """Bytes that the family caches, orthonormal bases for example, beyond weights and optimiser state."""
        return 0

    def init(self, spaces: Sequence[Space]) -> None:
        """Learn all spaces of the run, before the first step."""
        if self.activity is not None:
            self.activity.init(spaces)

    def is_active(self, space: Space, seed: int, step: int) -> bool:
        """Whether a step's directions have anything in a space."""
        return self.activity is None or self.activity.is_active(space, seed, step)

    def is_modulated(self, space: Space) -> bool:
        """Whether directions of this space are multiplied by a modulation."""
        return self.modulation is not None and self.modulation.applies(space)

    def rank_in(self, space: Space) -> int:
        """The rank of a matrix's direction in a space; 0 where directions are dense."""
        return 0

    def normaliser(self, space: Space) -> float:
        """The factor that gives products of factors a mean square of 1; 1 where directions are dense."""
        return 1.0

    def factors(self, source: Source, space: Space, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) of some directions: float32 (ids, stack * rank, rows) and (ids, stack * rank, columns)."""
        raise AssertionError("dense directions have no factors")

    def factor_steps(self, step: int) -> tuple[int, int] | None:
        """The steps at which the left and the right factors were drawn; None where factors are not noise as drawn."""
        return None


@dataclass(frozen=True)
class Dense(Family):
    """z has independent entries."""
