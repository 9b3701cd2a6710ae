"""Ranges of settings that several methods have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def require_rank(rank: int) -> None:
    """Raises ValueError for a rank below 1."""
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1")


def require_moments(betas: Sequence[Any], zeta: float) -> None:
    """Raises ValueError for what are no decays of two moments, and no number to divide by beside them."""
    if len(betas) != 2 or not all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are {betas}; they must be two numbers of at least 0 and below 1")
    require_zeta(zeta)


def require_zeta(zeta: float) -> None:
    """Raises ValueError for one that is not above 0."""
    if not zeta > 0:
        raise ValueError(f"zeta is {zeta}; it must be above 0")
