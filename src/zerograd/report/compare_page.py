"""A page that compares runs: results, curves, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerograd.machine.format import Measure
from zerograd.report import document
from zerograd.report.figures import COLOURS, RUNS, Chart, axes, chart, finite

Run = Mapping[str, Any]


def write(path: Path, runs: Sequence[Run], differences: Sequence[Sequence[Run | None]] | None) -> None:
    """Write the page.

    runs: two or more runs of one task and metric, at most as many as there are colours. Each has `folder` and `name`,
    `result` and `history` as in a run's report, and `different`, the settings that not all runs share. differences: for
    each run and each other run, `value` and `interval` of the difference in accuracy, None for a run and itself; None
    if rows cannot be paired.

    Raises ValueError for fewer or more runs.
    """
    if not 2 <= len(runs) <= len(RUNS):
        raise ValueError(f"{len(runs)} runs were given; a comparison takes 2 to {len(RUNS)}")
    first = runs[0]["result"]
    measure = Measure(first["is_share"])
    document.write(
        path,
        "compare.html",
        title=f"{first['task']}, {len(runs)} runs",
        measure=measure,
        best=max(runs, key=lambda run: float(run["result"]["value_after"])),
        runs=list(zip(RUNS, runs, strict=False)),
        curves=_curves(runs, measure),
        costs=_costs(runs, measure),
        differences=differences,
    )


def _curves(runs: Sequence[Run], measure: Measure) -> Chart:
    """The dev metric against time; the dev loss if a run logged no metric."""
    by_metric = all(any("dev_value" in row for row in run["history"]) for run in runs)
    name, logged, scale = ("loss", "dev_loss", 1)
    if by_metric:
        name, logged, scale = runs[0]["result"]["metric"], "dev_value", measure.scale
    figure, plot = axes("training time, s")
    for colour, run in zip(RUNS, runs, strict=False):
        time, value = finite(run["history"], "seconds", logged)
        plot.plot(time, scale * value, color=COLOURS[colour], linewidth=1.8, marker="o", markersize=3)
    return chart(figure, f"Dev {name}" + (", %" if scale == 100 else ""), _key(runs))


def _costs(runs: Sequence[Run], measure: Measure) -> Chart:
    """The test result, with interval, against peak memory."""
    figure, plot = axes("peak memory, MB")
    for colour, run in zip(RUNS, runs, strict=False):
        result = run["result"]
        place = result["peak_bytes"] / 1e6
        plot.plot([place] * 2, [measure.scale * end for end in result["ci_after"]], color=COLOURS[colour], linewidth=1.4)
        plot.plot([place], [measure.scale * result["value_after"]], color=COLOURS[colour], marker="o", markersize=7)
    plot.margins(x=0.2, y=0.1)
    return chart(figure, "Test result against memory" + (", %" if measure.is_share else ""), _key(runs))


def _key(runs: Sequence[Run]) -> dict[str, str]:
    return {colour: run["name"] for colour, run in zip(RUNS, runs, strict=False)}
