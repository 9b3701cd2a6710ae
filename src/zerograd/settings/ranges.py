"""Ranges of settings that several methods have. Each raises ValueError naming the setting, its value and its range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def require_beta(beta: float, name: str = "beta") -> None:
    """A decay of a mean: 0 <= beta < 1."""
    if not 0 <= beta < 1:
        raise ValueError(f"{name} is {beta}; it must be at least 0 and below 1")


def require_share(share: float, name: str, of: str) -> None:
    """A share of something: 0 < share <= 1."""
    if not 0 < share <= 1:
        raise ValueError(f"{name} is {share}; it is a share of {of}, above 0 and at most 1")


def require_moments(betas: Sequence[Any], zeta: float) -> None:
    """Decays of two moments, and the number beside the root that is divided by."""
    if len(betas) != 2 or not all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are {list(betas)}; they must be two numbers of at least 0 and below 1")
    require_zeta(zeta)


def require_zeta(zeta: float) -> None:
    """A number beside a root that is divided by: zeta > 0."""
    if not zeta > 0:
        raise ValueError(f"zeta is {zeta}; it must be above 0")
