"""Statistics of a run's test rows before and after tuning. A row is a dict of its text, options and scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zerograd.report.figures import finite

Row = Mapping[str, Any]

WHEN = ("before", "after")

CARDS = 8
"""The most rows of each kind of change on a page."""

MAX_OPTIONS = 12
"""The most options of a confusion table."""

PERCENTILES = (5, 25, 50, 75, 95)
"""Percentiles of margins in a table."""


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947): gains and losses are equally likely, a binomial with 1/2."""
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2 ** (gained + lost)))


def calibration_error(predictions: Sequence[Row], when: str) -> float:
    """The expected calibration error (Guo et al. 2017).

    Rows are put in tenths by the probability of their option. The error is the mean over rows of the distance, in a
    row's tenth, between the share of right rows and the mean probability.
    """
    return sum(n * abs(right - probability) for probability, right, n in tenths(predictions, when)) / len(predictions)


def tenths(predictions: Sequence[Row], when: str) -> list[tuple[float, float, int]]:
    """(mean probability, share of right rows, rows) in each tenth of the chosen option's probability."""
    parts: dict[int, list[Row]] = {}
    for row in predictions:
        parts.setdefault(min(9, int(10 * row[f"probability_{when}"])), []).append(row)
    mean = [(sum(r[f"probability_{when}"] for r in rows) / len(rows), rows) for _, rows in sorted(parts.items())]
    return [(probability, sum(bool(r[f"right_{when}"]) for r in rows) / len(rows), len(rows)) for probability, rows in mean]


def option_names(predictions: Iterable[Row]) -> dict[int, str]:
    """The option of each label, in the order of labels; without labels that no prediction got right."""
    right = ((row["label"], row[f"option_{when}"]) for row in predictions for when in WHEN if row[f"right_{when}"])
    return {label: option.strip() for label, option in sorted(set(right))}


def confusion(predictions: Sequence[Row]) -> list[dict[str, Any]] | None:
    """Tables of true label by chosen option, before and after. None without common options, or with too many."""
    if not predictions or "label" not in predictions[0]:
        return None
    if len({row[f"option_{when}"] for row in predictions for when in WHEN}) > MAX_OPTIONS:
        return None
    names = option_names(predictions)
    chosen = sorted(row[f"option_{when}"].strip() for row in predictions for when in WHEN)
    options = list(dict.fromkeys([*names.values(), *chosen]))
    tables = []
    for when in WHEN:
        counts = Counter((row["label"], row[f"option_{when}"].strip()) for row in predictions)
        rows = []
        for label in sorted({row["label"] for row in predictions}):
            total = sum(counts[label, option] for option in options)
            cells = [
                {"count": counts[label, option], "share": counts[label, option] / total, "right": option == names.get(label)}
                for option in options
            ]
            rows.append({"name": names.get(label, f"label {label}"), "cells": cells})
        tables.append({"when": when.title(), "options": options, "rows": rows})
    return tables


def changes(predictions: Sequence[Row]) -> dict[str, Any] | None:
    """Counts of rows by right or wrong, before and after. None if answers are neither."""
    if not predictions or "right_before" not in predictions[0]:
        return None
    sides = Counter((bool(row["right_before"]), bool(row["right_after"])) for row in predictions)
    gained, lost = sides[False, True], sides[True, False]
    kinds = [
        {"kind": "keep", "rows": sides[True, True], "name": "right both times"},
        {"kind": "gain", "rows": gained, "name": "gained: wrong → right"},
        {"kind": "lose", "rows": lost, "name": "lost: right → wrong"},
        {"kind": "still", "rows": sides[False, False], "name": "wrong both times"},
    ]
    return {"kinds": kinds, "changed": gained + lost, "p": mcnemar(gained, lost)}


def examples(predictions: Sequence[Row]) -> list[dict[str, Any]]:
    """Gained, lost and still wrong rows, the largest changes of the margin first. Empty if rows have no label."""
    if not predictions or "label" not in predictions[0]:
        return []
    names = option_names(predictions)
    ordered = sorted(predictions, key=lambda row: -abs(row["margin_after"] - row["margin_before"]))
    columns = []
    for title, sides in (("Gained", (False, True)), ("Lost", (True, False)), ("Still wrong", (False, False))):
        rows = [row for row in ordered if (row["right_before"], row["right_after"]) == sides]
        cards = [
            {
                "text": row["text"],
                "id": row["id"],
                "right": names.get(row["label"], row["label"]),
                "margins": (row["margin_before"], row["margin_after"]),
                "options": [(row[f"option_{when}"].strip(), right) for when, right in zip(WHEN, sides, strict=True)],
            }
            for row in rows[:CARDS]
        ]
        columns.append({"title": title, "cards": cards, "rows": len(rows)})
    return columns


FELL = 3
"""Answers whose reward fell most that are shown."""


def answers(predictions: Sequence[Row]) -> list[Row]:
    """The rows whose loss fell most, of a task whose answers are free; where none is right, also FELL whose reward fell most. Empty
    for other tasks.
    """
    if not predictions or "label" in predictions[0]:
        return []
    by_change = sorted(predictions, key=lambda row: row["loss_after"] - row["loss_before"])
    if predictions[0]["reference"] or len(by_change) <= CARDS:
        return by_change[:CARDS]
    return by_change[: CARDS - FELL] + by_change[: -FELL - 1 : -1]


def margins(predictions: Sequence[Row]) -> dict[str, Any] | None:
    """Margins and their percentiles, of rows with margins before and after. None without such rows."""
    sides = finite(predictions, "margin_before", "margin_after")
    if not len(sides[0]):
        return None
    rows = [
        {
            "name": "Median" if level == 50 else f"{level}th percentile",
            "values": [float(np.percentile(side, level)) for side in sides],
        }
        for level in PERCENTILES
    ]
    return {"before": sides[0], "after": sides[1], "rows": rows}
