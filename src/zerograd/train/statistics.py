"""Intervals for accuracies on one test set."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959963984540054
"""The normal quantile of a 95 % interval."""


def wilson(right: int, rows: int) -> list[float]:
    """95 % interval of a proportion (Wilson 1927)."""
    p, n = right / rows, rows
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return [centre - half, centre + half]


def paired(before: Sequence[bool], after: Sequence[bool]) -> list[float]:
    """95 % interval of the difference of two accuracies on the same rows, by the normal approximation of paired differences.

    Raises ValueError for fewer than two rows.
    """
    differences = [int(a) - int(b) for b, a in zip(before, after, strict=True)]
    n = len(differences)
    if n < 2:
        raise ValueError(f"{n} rows give no interval; at least 2 are needed")
    mean = sum(differences) / n
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return [mean - Z * deviation, mean + Z * deviation]


def best_threshold(margins: Sequence[float], labels: Sequence[int]) -> float:
    """The threshold on the margin of option 1 over option 0 that gets most rows right; of equals, the nearest to zero."""
    order = sorted(zip(margins, labels, strict=True))
    right = sum(label for _, label in order)  # everything above the threshold is called 1
    candidates = [(right, order[0][0] - 1)]
    for i, (margin, label) in enumerate(order):
        right += 1 - 2 * label
        following = order[i + 1][0] if i + 1 < len(order) else margin + 2
        if following > margin:
            candidates.append((right, (margin + following) / 2))
    best = max(right for right, _ in candidates)
    return min((threshold for right, threshold in candidates if right == best), key=abs)
