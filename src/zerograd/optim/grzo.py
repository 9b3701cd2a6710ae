r"""GRZO (Findings of EMNLP 2026): one dense matrix for the batch, and signs of each example's own on its rows and columns.

Z_b = U * (r_b s_b^T),     d_b = (l_b(w + eps Z_b) - l_b(w - eps Z_b)) / 2,     w <- w - lr (1 / B) sum_b d_b / std(d) Z_b

U is Gaussian and drawn once a step, r_b and s_b are signs. A vector has dense signs of each example's own. The published step is
1 / (2 eps) times this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import nn

from zerograd import noise
from zerograd.directions.family import Directions, Family
from zerograd.noise import COMMON as MATRIX
from zerograd.optim.base import Common
from zerograd.optim.per_example import PerExample
from zerograd.spaces.weights import Slot
from zerograd.update.state import State


class CommonMatrix:
    """U: what all directions of a step have in common."""

    def applies(self, slot: Slot) -> bool:
        return slot.is_matrix

    def values(self, directions: Directions, slot: Slot, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        first, stop, _ = columns.indices(slot.view[2])
        out = torch.empty(1, len(rows), stop - first, dtype=torch.float32, device=rows.device)
        noise.backend(out).fill(out, "gaussian", directions.address(slot, 0, MATRIX), [0], rows, first)
        return out[0]


class GRZO(PerExample):
    r"""Zeroth-order SGD with a common dense matrix under each example's own signs.

    Args:
        params, lr, eps, standardised and the rest: as in `PerExample`.
    """

    RATE = 0.04

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        standardised: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr, eps, standardised=standardised, **common)
        self.chosen = {}  # its directions are of one kind

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        return Family("rademacher", 1, shape=CommonMatrix()), State()
