"""A leaderboard page: accuracy against seconds and against memory, curves, and all tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from zerograd.report import document
from zerograd.report.figures import COLOURS, RUNS, Chart, axes, chart

Table = Mapping[str, Any]

VERDICT_COLOURS = {"above": "run2", "below": "run1", "even": "before", "": "ink"}
"""The colour of a method in a figure, by its verdict against the reference."""

MIN_SPAN = 0.05
"""The least span of accuracy in a figure, above and below the untrained model's."""

NAME_POINTS = 6.5
"""Size of a method's name in a figure, in points."""

DOT_POINTS = 2.25
"""Radius of a dot, in points."""


def write(path: Path, groups: Sequence[Table]) -> None:
    """Write the page.

    groups: tables with the same model, prompt and task. A group has `tables`, the first of which is drawn against
    memory; `timed`, the table that is drawn against seconds, or None if seconds cannot be compared; and a list
    `curves`, each with `name`, `seconds` and `losses`. A table has `title`, `note`, `heads`, `reference`, `budget`,
    `before` (the untrained model's accuracy) and `lines`, the best first. A line has `name`, `value`, `interval`,
    `verdict`, `seconds`, `peak_bytes` and `cells`, one per heading; the cell under the empty heading is the verdict.
    """
    page_groups = []
    for group in groups:
        first, timed = group["tables"][0], group["timed"]
        figures = [_scatter(first, lambda line: line["peak_bytes"] / 1e6, "peak memory, MB", "Test accuracy against memory")]
        if timed:
            figures.insert(0, _scatter(timed, lambda line: line["seconds"], "training time, s", "Test accuracy against seconds"))
        page_groups.append({"figures": figures, "curves": _curves(group["curves"]), "tables": group["tables"]})
    document.write(path, "leaderboard.html", title="zerograd leaderboard", first=groups[0]["tables"][0], groups=page_groups)


def _scatter(table: Table, across: Callable[[Table], float], label: str, title: str) -> Chart:
    """Dots with intervals. A method farther below the untrained model than the best is above it is at the lower edge."""
    figure, plot = axes(label)
    best = max(line["value"] for line in table["lines"])
    span = max(best - table["before"], MIN_SPAN)
    floor = table["before"] - span
    points = []
    for line in table["lines"]:
        colour, x, below = COLOURS[VERDICT_COLOURS[line["verdict"]]], across(line), line["value"] < floor
        if line["interval"]:
            plot.plot([x] * 2, [100 * end for end in line["interval"]], color=colour, linewidth=0.8, alpha=0.5)
        y = 100 * max(line["value"], floor)
        plot.plot([x], [y], color=colour, marker="v" if below else "o", markersize=2 * DOT_POINTS)
        name = f"{line['name']} {100 * line['value']:.1f}" if below else line["name"]
        points.append((line["verdict"] == "even", name, x, y))
    plot.axhline(100 * table["before"], color=COLOURS["line"], linestyle="--", linewidth=1)
    plot.margins(x=0.15)
    plot.set_ylim(100 * (floor - span / 10), 100 * (best + span / 3))
    _write_names(figure, plot, [point[1:] for point in sorted(points, key=itemgetter(0))])
    names = {"above": f"above {table['reference']}", "even": "even", "below": "below", "": table["reference"]}
    verdicts = {line["verdict"] for line in table["lines"]}
    key = {VERDICT_COLOURS[verdict]: name for verdict, name in names.items() if verdict in verdicts}
    return chart(figure, f"{title}, at matched {table['budget']}, %", key)


def _write_names(figure: Figure, plot: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write names beside dots, in order. A name without room is left out; the table has it."""
    figure.draw_without_rendering()  # computes the place of the axes
    unit = figure.dpi / 72
    dots = [plot.transData.transform(point[1:]) / unit for point in points]
    used: list[Bbox] = []
    for (name, x, y), own in zip(points, dots, strict=True):
        across, up = own
        width = 0.6 * NAME_POINTS * len(name)
        for right, above, side in ((4.0, 2.0, "left"), (-4.0, 2.0, "right"), (0.0, 5.0, "center"), (0.0, -9.0, "center")):
            left = across + right - {"left": 0.0, "right": width, "center": width / 2}[side]
            box = Bbox.from_bounds(left, up + above, width, NAME_POINTS)
            outside = box.x0 < 0 or box.x1 > 72 * figure.get_figwidth()
            if outside or box.count_overlaps(used) or any(box.padded(DOT_POINTS).contains(*dot) for dot in dots if dot is not own):
                continue
            used.append(box)
            where: dict[str, Any] = {"textcoords": "offset points", "fontsize": NAME_POINTS, "ha": side, "color": COLOURS["mute"]}
            plot.annotate(name, (x, y), (right, above), **where).set_in_layout(False)
            break


def _curves(curves: Sequence[Table]) -> Chart | None:
    """Dev loss against seconds, for as many methods as there are colours."""
    if not curves:
        return None
    figure, plot = axes("training time, s")
    for colour, curve in zip(RUNS, curves, strict=False):
        plot.plot(curve["seconds"], curve["losses"], color=COLOURS[colour], linewidth=1.6, marker="o", markersize=3)
    key = {colour: curve["name"] for colour, curve in zip(RUNS, curves, strict=False)}
    return chart(figure, "Dev loss against seconds, mean over seeds", key)
