"""From scores to finite differences: plain functions of float32 tensors."""

from __future__ import annotations

import torch

SHAPINGS = ("radius", "deviation", "size")
"""What a finite difference can be divided by."""


def central(values: torch.Tensor) -> torch.Tensor:
    """Half the difference of [+z ; -z]: the radius times the derivative, to second order. (2 n, ...) to (n, ...)."""
    plus, minus = values.chunk(2)
    return (plus - minus) / 2


def leave_one_out(scores: torch.Tensor) -> torch.Tensor:
    """Each score minus the mean of the others: (n, ...) one-sided scores of n directions on the same rows.

    It is the radius times the derivative, with the others as a baseline (RLOO, Kool et al. 2019).
    Raises ValueError for a single direction.
    """
    n = len(scores)
    if n < 2:
        raise ValueError("one direction has no others to be compared with; give each example at least 2, or use two sides")
    return (scores - scores.mean(0)) * (n / (n - 1))


def standardise(differences: torch.Tensor) -> torch.Tensor:
    """Differences over their standard deviation, not centred: (directions,), all zero when they do not vary.

    The mean stays, since each two-sided difference is already centred on its own example (GRZO, 2026).
    Raises ValueError for a single difference.
    """
    if len(differences) < 2:
        raise ValueError("one difference has no standard deviation; use a batch of at least 2, or plain coefficients")
    deviation = differences.std()
    return differences / deviation if deviation > 0 else torch.zeros_like(differences)
