"""From scores to coefficients: plain functions of float32 tensors.

A score is the loss of an expanded example; a coefficient is what its direction is multiplied by in the estimate.
"""

from __future__ import annotations

import torch


def halves(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of [+z ; -z] as (plus, minus), each (examples,)."""
    plus, minus = scores.view(2, -1)
    return plus, minus


def central(plus: torch.Tensor, minus: torch.Tensor) -> torch.Tensor:
    """Half the difference of two scores: eps times the derivative along the direction, to second order in eps."""
    return (plus - minus) / 2


def leave_one_out(scores: torch.Tensor) -> torch.Tensor:
    """Each score minus the mean of its fellows: (n, ...) one-sided scores of n directions on the same rows.

    It is eps times the derivative along the direction, with the fellows' as a baseline (RLOO, Kool et al. 2019).
    Raises ValueError for a single direction, which has no fellows.
    """
    n = len(scores)
    if n < 2:
        raise ValueError("one direction has no others to be compared with; give each example at least 2, or use two sides")
    return (scores - scores.mean(0)) * (n / (n - 1))


def standardise(differences: torch.Tensor) -> torch.Tensor:
    """Differences over their standard deviation, not centred: (directions,), all zero when they do not vary.

    The mean stays, since each two-sided difference is already centred on its own example (GRZO, 2026).
    Raises ValueError for a single difference, which has no deviation.
    """
    if len(differences) < 2:
        raise ValueError("one difference has no standard deviation; use a batch of at least 2, or plain coefficients")
    deviation = differences.std()
    return differences / deviation if deviation > 0 else torch.zeros_like(differences)
