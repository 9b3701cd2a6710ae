"""Confidence intervals of results on one test set."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import numpy as np

NORMAL_QUANTILE = 1.959963984540054
"""The normal quantile of a 95 % interval."""

STUDENT_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's quantiles of a 95 % interval with 1, 2, ... degrees of freedom."""

RESAMPLES = 500
"""Resamples of a bootstrap."""


def wilson(right: int, rows: int) -> list[float]:
    """95 % interval of a proportion (Wilson 1927)."""
    p, n = right / rows, rows
    centre = (p + NORMAL_QUANTILE * NORMAL_QUANTILE / (2 * n)) / (1 + NORMAL_QUANTILE * NORMAL_QUANTILE / n)
    half = (
        NORMAL_QUANTILE
        / (1 + NORMAL_QUANTILE * NORMAL_QUANTILE / n)
        * math.sqrt(p * (1 - p) / n + NORMAL_QUANTILE * NORMAL_QUANTILE / (4 * n * n))
    )
    return [max(0.0, centre - half), min(1.0, centre + half)]


def mean(values: Sequence[float]) -> list[float]:
    """95 % interval of a mean over rows, by the normal approximation; Wilson's where the values are zeros and ones.

    Raises ValueError for fewer than two rows.
    """
    if set(values) <= {0, 1}:
        return wilson(int(sum(values)), len(values))
    return paired([0.0] * len(values), values)


def paired(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """95 % interval of the difference of two means over the same rows, by the normal approximation of paired
    differences.

    Raises ValueError for fewer than two rows.
    """
    differences = [float(a) - float(b) for b, a in zip(before, after, strict=True)]
    n = len(differences)
    if n < 2:
        raise ValueError(f"{n} rows give no interval; at least 2 are needed")
    centre = sum(differences) / n
    deviation = math.sqrt(sum((d - centre) ** 2 for d in differences) / (n - 1) / n)
    return [centre - NORMAL_QUANTILE * deviation, centre + NORMAL_QUANTILE * deviation]


def bootstrap(value: Callable[[Sequence[int]], float], rows: int) -> list[float]:
    """95 % interval of a statistic of rows, value(indices), by resampling the rows (Efron 1979).

    Raises ValueError for fewer than two rows.
    """
    if rows < 2:
        raise ValueError(f"{rows} rows give no interval; at least 2 are needed")
    draw = random.Random(0)
    values = sorted(value(draw.choices(range(rows), k=rows)) for _ in range(RESAMPLES))
    return [values[int(0.025 * RESAMPLES)], values[int(0.975 * RESAMPLES)]]


def best_threshold(margins: Sequence[float], labels: Sequence[int]) -> float:
    """The threshold on the margin of option 1 over option 0 with the most right rows; of equals, the nearest to zero."""
    order = sorted(zip(margins, labels, strict=True))
    right = sum(label for _, label in order)  # rows above the threshold get label 1
    candidates = [(right, order[0][0] - 1)]
    for i, (margin, label) in enumerate(order):
        right += 1 - 2 * label
        following = order[i + 1][0] if i + 1 < len(order) else margin + 2
        if following > margin:
            candidates.append((right, (margin + following) / 2))
    best = max(right for right, _ in candidates)
    return min((threshold for right, threshold in candidates if right == best), key=abs)


def best_offsets(scores: Sequence[Sequence[float]], labels: Sequence[int]) -> list[float]:
    """The offset of each option's score that makes most rows right; the first option's is 0.

    Two options need one threshold. With more, each option's offset in turn is set to its best value given the other
    offsets, three times.
    """
    count = len(scores[0])
    offsets = [0.0] * count
    for _ in range(3 if count > 2 else 1):
        for option in range(1, count):
            others = [max(s + o for i, (s, o) in enumerate(zip(row, offsets, strict=True)) if i != option) for row in scores]
            margins = [row[option] - other for row, other in zip(scores, others, strict=True)]
            # a row whose label is neither this option nor the best other one stays wrong
            movable = []
            for margin, row, other, label in zip(margins, scores, others, labels, strict=True):
                if label == option:
                    movable.append((margin, 1))
                elif row[label] + offsets[label] == other:
                    movable.append((margin, 0))
            if movable:
                offsets[option] = -best_threshold([m for m, _ in movable], [is_it for _, is_it in movable])
    return offsets


def student(values: Sequence[float]) -> list[float]:
    """95 % interval of the mean of a few values, such as one per seed, by Student's t.

    Raises ValueError for fewer than two.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} values give no interval; at least 2 are needed")
    half = (STUDENT_QUANTILES[n - 2] if n - 2 < len(STUDENT_QUANTILES) else NORMAL_QUANTILE) * stdev(values) / math.sqrt(n)
    return [fmean(values) - half, fmean(values) + half]


def crossed_bootstrap(
    values: Sequence[Sequence[float]], blocks: Sequence[int] = (), resamples: int = 2000, seed: int = 0
) -> list[float]:
    """95 % interval of the mean of values[seed][row], where every seed has the same rows.

    Seeds and rows are resampled independently of each other, the pigeonhole bootstrap (Owen 2007). Few seeds have no
    tails to resample, so the interval is at least as wide as Student's t over the seeds' means. blocks: the number of
    rows of each task, in order; tasks have equal weights.
    Raises ValueError for fewer than two rows.
    """
    table = np.asarray(values, np.float64)  # (seeds, rows)
    count = len(table)
    widths = list(blocks) or [table.shape[1]]
    if min(widths) < 2:
        raise ValueError(f"{min(widths)} rows give no interval; at least 2 are needed")
    draw = np.random.default_rng(seed)
    seeds = draw.multinomial(count, np.full(count, 1 / count), resamples)  # (resamples, seeds)
    means = np.zeros(resamples)
    each = np.zeros(count)
    for part, width in zip(np.split(table, np.cumsum(widths)[:-1], axis=1), widths, strict=True):
        rows = draw.multinomial(width, np.full(width, 1 / width), resamples)  # (resamples, rows)
        means += ((seeds @ part) * rows).sum(1) / (count * width * len(widths))
        each += part.mean(1) / len(widths)
    low, high = (float(end) for end in np.quantile(means, (0.025, 0.975)))
    if count > 1:
        narrow, wide = student(each.tolist())
        low, high = min(low, narrow), max(high, wide)
    return [low, high]
