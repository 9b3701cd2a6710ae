"""A leaderboard: accuracy against seconds and against memory, curves, and every table on one page."""

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

COLOUR = {"above": "run2", "below": "run1", "even": "before", "": "ink"}
"""Of a method in a figure, by its verdict against the reference."""

LEAST = 0.05
"""Of accuracy on both sides of the untouched model's, in a figure."""

NAME = 6.5
"""Points of a name's letters in a figure."""

DOT = 2.25
"""Points of a dot's radius."""


def write(path: Path, groups: Sequence[Table]) -> None:
    """Write the page.

    groups: of tables that have model, prompt and task in common. Each has `tables`, whose first is drawn against memory, `timed`
    (the table that is drawn against seconds, or None where seconds cannot be compared) and `curves`, perhaps none, each with
    `name`, `seconds` and `losses`. A table has `title`, `note`, `heads`, `reference`, `budget`, `before` (the untouched model's
    accuracy) and `lines`, the best first. A line has `name`, `value`, `interval`, `verdict`, `seconds`, `peak_bytes` and `cells`,
    one a heading; the cell of the heading without text is the verdict.
    """
    shown = []
    for group in groups:
        first, timed = group["tables"][0], group["timed"]
        figures = [_scatter(first, lambda line: line["peak_bytes"] / 1e6, "peak memory, MB", "Test accuracy against memory")]
        if timed:
            figures.insert(0, _scatter(timed, lambda line: line["seconds"], "training time, s", "Test accuracy against seconds"))
        shown.append({"figures": figures, "curves": _curves(group["curves"]), "tables": group["tables"]})
    document.write(path, "leaderboard.html", title="zerograd leaderboard", first=groups[0]["tables"][0], groups=shown)


def _scatter(table: Table, across: Callable[[Table], float], label: str, title: str) -> Chart:
    """Dots with intervals. A method farther below the untouched model than the best is above it stands at the lower edge."""
    figure, plot = axes(label)
    best = max(line["value"] for line in table["lines"])
    span = max(best - table["before"], LEAST)
    floor = table["before"] - span
    points = []
    for line in table["lines"]:
        colour, x, below = COLOURS[COLOUR[line["verdict"]]], across(line), line["value"] < floor
        if line["interval"]:
            plot.plot([x] * 2, [100 * end for end in line["interval"]], color=colour, linewidth=0.8, alpha=0.5)
        y = 100 * max(line["value"], floor)
        plot.plot([x], [y], color=colour, marker="v" if below else "o", markersize=2 * DOT)
        name = f"{line['name']} {100 * line['value']:.1f}" if below else line["name"]
        points.append((line["verdict"] == "even", name, x, y))
    plot.axhline(100 * table["before"], color=COLOURS["line"], linestyle="--", linewidth=1)
    plot.margins(x=0.15)
    plot.set_ylim(100 * (floor - span / 10), 100 * (best + span / 3))
    _name(figure, plot, [point[1:] for point in sorted(points, key=itemgetter(0))])
    names = {"above": f"above {table['reference']}", "even": "even", "below": "below", "": table["reference"]}
    verdicts = {line["verdict"] for line in table["lines"]}
    key = {COLOUR[verdict]: name for verdict, name in names.items() if verdict in verdicts}
    return chart(figure, f"{title}, at matched {table['budget']}, %", key)


def _name(figure: Figure, plot: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write the names of dots beside them, in the order given. A name for which there is no room is left to the table."""
    figure.draw_without_rendering()  # which settles where the axes are
    unit = figure.dpi / 72
    dots = [plot.transData.transform(point[1:]) / unit for point in points]
    taken: list[Bbox] = []
    for (name, x, y), own in zip(points, dots, strict=True):
        across, up = own
        width = 0.6 * NAME * len(name)
        for right, above, side in ((4.0, 2.0, "left"), (-4.0, 2.0, "right"), (0.0, 5.0, "center"), (0.0, -9.0, "center")):
            left = across + right - {"left": 0.0, "right": width, "center": width / 2}[side]
            box = Bbox.from_bounds(left, up + above, width, NAME)
            outside = box.x0 < 0 or box.x1 > 72 * figure.get_figwidth()
            if outside or box.count_overlaps(taken) or any(box.padded(DOT).contains(*dot) for dot in dots if dot is not own):
                continue
            taken.append(box)
            where: dict[str, Any] = {"textcoords": "offset points", "fontsize": NAME, "ha": side, "color": COLOURS["mute"]}
            plot.annotate(name, (x, y), (right, above), **where).set_in_layout(False)
            break


def _curves(curves: Sequence[Table]) -> Chart | None:
    """Dev loss against seconds of as many methods as there are colours."""
    if not curves:
        return None
    figure, plot = axes("training time, s")
    for colour, curve in zip(RUNS, curves, strict=False):
        plot.plot(curve["seconds"], curve["losses"], color=COLOURS[colour], linewidth=1.6, marker="o", markersize=3)
    key = {colour: curve["name"] for colour, curve in zip(RUNS, curves, strict=False)}
    return chart(figure, "Dev loss against seconds, mean over seeds", key)
