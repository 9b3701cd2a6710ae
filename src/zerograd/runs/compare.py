"""Data of finished runs for a comparison page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zerograd.runs.folder import Run
from zerograd.text import intervals


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """The arguments of `report.compare_page.write`: the runs, and their paired differences.

    Raises ValueError for runs of different tasks or metrics.
    """
    first = runs[0]
    for run in runs[1:]:
        for name in ("task", "metric"):
            if run.result[name] != first.result[name]:
                problem = f"{run.folder} has {name} {run.result[name]!r} and {first.folder} {first.result[name]!r}"
                raise ValueError(f"{problem}; only runs of one {name} can be compared")
    return {"runs": [_run(run, runs) for run in runs], "differences": _differences(runs)}


def _run(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    fields = {"folder": str(run.folder), "name": run.folder.name, "different": _different(run, runs)}
    return fields | {"result": run.result | run.record, "history": run.history}


def _different(run: Run, runs: Sequence[Run]) -> str:
    """The settings that not all runs share."""
    fields = [name for name in vars(run.settings) if name != "out"]
    differ = [name for name in fields if len({repr(getattr(other.settings, name)) for other in runs}) > 1]
    values = {name: getattr(run.settings, name) for name in differ}
    return ", ".join(f"{name} {f'{value:g}' if isinstance(value, float) else value}" for name, value in values.items()) or "none"


def _differences(runs: Sequence[Run]) -> list[list[dict[str, Any] | None]] | None:
    """The difference of each run's accuracy to every other's, with paired 95 % intervals.

    None if runs were not tested on the same rows, or if answers are neither right nor wrong.
    """
    rows = [{row["id"]: row for row in run.predictions} for run in runs]
    if any("right_after" not in row for of_run in rows for row in of_run.values()) or len({frozenset(one) for one in rows}) > 1:
        return None
    right = [[float(of_run[i]["right_after"]) for i in rows[0]] for of_run in rows]
    return [[None if ours is theirs else _difference(ours, theirs) for theirs in right] for ours in right]


def _difference(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    return {"value": (sum(ours) - sum(theirs)) / len(ours), "interval": intervals.paired(theirs, ours)}
