"""Low-rank directions of matrices: z = (1 / sqrt r) sum_j a_j b_j^T. Vectors have dense directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zerograd.directions.family import Family
from zerograd.directions.source import Source
from zerograd.noise import LEFT, RIGHT
from zerograd.spaces import Space


@dataclass(frozen=True)
class LowRank(Family):
    """rank: r >= 1. right_period: steps that the right factors b last, at least 1."""

    rank: int = 1
    right_period: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "right_period"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.removeprefix('right_')} is {getattr(self, name)}; it must be at least 1")

    def rank_in(self, space: Space) -> int:
        return self.rank if space.is_matrix else 0

    def normaliser(self, space: Space) -> float:
        return 1 / math.sqrt(self.rank) if self.rank_in(space) else 1.0

    def factors(self, source: Source, space: Space, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.left(source, space, ids), self.right(source, space, ids)

    def left(self, source: Source, space: Space, ids: Sequence[int]) -> torch.Tensor:
        """a of some directions: float32 (ids, stack * rank, rows)."""
        return source.raw_noise(self.distribution, space, ids, LEFT, self.rank, space.view[1])

    def right(self, source: Source, space: Space, ids: Sequence[int]) -> torch.Tensor:
        """b of some directions: float32 (ids, stack * rank, columns)."""
        began = source.at(self.right_began(source.step))
        return began.raw_noise(self.distribution, space, ids, RIGHT, self.rank, space.view[2])

    def right_began(self, step: int) -> int:
        """The step at which the right factors of a step were drawn."""
        return step - step % self.right_period

    def factor_steps(self, step: int) -> tuple[int, int] | None:
        return step, self.right_began(step)
