"""Where the noise of a step comes from: a seed and a step number, which are a part of every address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from zerograd import noise
from zerograd.noise import DENSE, Address
from zerograd.spaces import Space


@dataclass(frozen=True)
class Source:
    """seed: 0 <= seed < 2**64. step: 0 <= step < 2**32."""

    seed: int
    step: int

    def at(self, step: int) -> Self:
        """The same of another step."""
        return replace(self, step=step)

    def address(self, space: Space, direction: int = 0, domain: int = DENSE) -> Address:
        return Address(self.seed, self.step, direction, space.id, domain)

    def raw_noise(self, distribution: str, space: Space, ids: Sequence[int], domain: int, rank: int, columns: int) -> torch.Tensor:
        """Noise of a domain, with `rank` rows for each matrix of a space: float32 (ids, stack * rank, columns)."""
        rows = torch.arange(space.view[0] * rank, device=space.device)
        out = torch.empty(len(ids), len(rows), columns, dtype=torch.float32, device=rows.device)
        noise.backend(out).fill(out, distribution, self.address(space, domain=domain), ids, rows, 0)
        return out
