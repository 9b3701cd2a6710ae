"""A leaderboard as one self-contained page: what `zerograd.report` draws and writes of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from zerograd.bench import rows, tables
from zerograd.bench.rows import Row
from zerograd.bench.tables import Line, Place, Table
from zerograd.report import leaderboard_page


def write(path: Path, found: Sequence[Row]) -> None:
    """Write the page of some rows. Raises ValueError when there are none."""
    made = tables.tables(found)
    if not made:
        raise ValueError("there is no row to show; zerograd bench run makes some")
    groups = []
    for place, some in groupby(made, lambda table: table.place):
        group = list(some)
        timed = next((table for table in group if len(table.machines) < 2), None)  # seconds of two machines are not alike
        mine = [row for row in found if timed and Place.of(row) == place and rows.machine(row) in timed.machines]
        groups.append(
            {
                "tables": [_table(table) for table in group],
                "timed": _table(timed) if timed else None,
                "curves": _curves(timed, mine) if timed and mine else [],  # of all tasks together there is none
            }
        )
    leaderboard_page.write(path, groups)


def _table(table: Table) -> dict[str, Any]:
    lines = [
        {
            "name": _name(line, table),
            "value": line.value,
            "interval": line.interval,
            "verdict": line.verdict,
            "seconds": line.seconds,
            "peak_bytes": line.peak_bytes,
            "cells": tables.cells(line),
        }
        for line in table.lines
    ]
    fields = {"title": table.title, "note": table.note, "heads": tables.heads(table), "lines": lines}
    return fields | {"reference": table.reference, "budget": table.budget, "before": table.before}


def _name(line: Line, table: Table) -> str:
    """A method's name, with its scheme where it has several."""
    return f"{line.method} on {line.scheme}" if sum(other.method == line.method for other in table.lines) > 1 else line.method


def _curves(table: Table, found: Sequence[Row]) -> list[dict[str, Any]]:
    """Dev losses and seconds, means over seeds, of the reference and then of the other methods, the best first."""
    curves = []
    for line in sorted(table.lines, key=lambda line: not line.is_reference):
        of_seeds = [row.get("curve", []) for row in found if (row["method"], row["scheme"]) == (line.method, line.scheme)]
        looks = list(zip(*of_seeds, strict=False))  # the first evaluation of each seed, the second, ...
        seconds = [fmean(look["seconds"] for look in each) for each in looks]
        losses = [fmean(look.get("dev_loss", float("nan")) for look in each) for each in looks]
        curves.append({"name": line.method, "seconds": seconds, "losses": losses})
    return curves
