"""Modulations that no optimiser state makes: a matrix that all directions of a step have in common."""

from __future__ import annotations

import torch

from zerograd import noise
from zerograd.directions.source import Source
from zerograd.noise import COMMON
from zerograd.spaces import Space


class CommonMatrix:
    """A Gaussian matrix of each matrix's size, drawn once a step (GRZO's U)."""

    def applies(self, space: Space) -> bool:
        return space.is_matrix

    def values(self, source: Source, space: Space, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        first, stop, _ = columns.indices(space.view[2])
        out = torch.empty(1, len(rows), stop - first, dtype=torch.float32, device=rows.device)
        noise.backend(out).fill(out, "gaussian", source.address(space, 0, COMMON), [0], rows, first)
        return out[0]
