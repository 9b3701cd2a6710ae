"""A leaderboard as data for `zerograd.report`, which draws and writes its page."""

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


def write(path: Path, leaderboard_rows: Sequence[Row]) -> None:
    """Write the leaderboard page of rows. Raises ValueError without rows."""
    all_tables = tables.tables(leaderboard_rows)
    if not all_tables:
        raise ValueError("there are no rows; zerograd bench run makes them")
    groups = []
    for place, of_place in groupby(all_tables, lambda table: table.place):
        group = list(of_place)
        timed = next((table for table in group if len(table.machines) < 2), None)  # seconds of two machines are not comparable
        timed_rows = [
            row for row in leaderboard_rows if timed and Place.of(row) == place and rows.machine_name(row) in timed.machines
        ]
        groups.append(
            {
                "tables": [_table(table) for table in group],
                "timed": _table(timed) if timed else None,
                "curves": _curves(timed, timed_rows) if timed and timed_rows else [],  # all tasks together have no curve
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
    """A method's name, with its scheme if the table has several schemes of the method."""
    return f"{line.method} on {line.scheme}" if sum(other.method == line.method for other in table.lines) > 1 else line.method


def _curves(table: Table, timed_rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Dev losses and seconds, means over seeds, of the reference and then of the other methods, the best first."""
    curves = []
    for line in sorted(table.lines, key=lambda line: not line.is_reference):
        of_seeds = [row.get("curve", []) for row in timed_rows if (row["method"], row["scheme"]) == (line.method, line.scheme)]
        evaluations = list(zip(*of_seeds, strict=False))  # the first evaluation of each seed, the second, ...
        seconds = [fmean(look["seconds"] for look in each) for each in evaluations]
        losses = [fmean(look.get("dev_loss", float("nan")) for look in each) for each in evaluations]
        curves.append({"name": line.method, "seconds": seconds, "losses": losses})
    return curves
