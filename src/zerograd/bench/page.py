"""A leaderboard as one self-contained page: accuracy against seconds and against memory, and every table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from zerograd.bench import rows, tables
from zerograd.bench.rows import Row
from zerograd.bench.tables import Line, Place, Table
from zerograd.machine.files import write_text
from zerograd.report import html as page

COLOUR = {"above": "run2", "below": "run1", "even": "before", "": "ink"}
"""Of a method in a figure, by its verdict against the reference."""

LEAST = 0.05
"""Of accuracy on both sides of the untouched model's, in a figure."""

NAME = 6.5
"""Points of a name's letters in a figure."""

DOT = 2.25
"""Points of a dot's radius."""

KIND = {"above": "hit", "below": "miss", "even": "even", "": ""}


def write(path: Path, found: Sequence[Row]) -> None:
    """Write the page of some rows. Raises ValueError when there are none."""
    made = tables.tables(found)
    if not made:
        raise ValueError("there is no row to show; zerograd bench run makes some")
    parts = [_head(made)]
    for where, group in groupby(made, lambda table: table.place):
        some = list(group)
        first = some[0]
        drawn = [_scatter(first, "peak memory, MB", lambda line: line.peak_bytes / 1e6, "Test accuracy against memory")]
        timed = next((table for table in some if len(table.machines) < 2), None)  # seconds of two machines are not alike
        curves = ""
        if timed is not None:
            drawn.insert(0, _scatter(timed, "training time, s", lambda line: line.seconds, "Test accuracy against seconds"))
            mine = [row for row in found if Place.of(row) == where and rows.machine(row) in timed.machines]
            curves = _curves(timed, mine) if mine else ""  # of all tasks together there is none
        parts.append(f'<div class="two">{"".join(drawn)}</div>{curves}')
        parts += [page.section(escape(table.title), _table(table), escape(table.note)) for table in some]
    write_text(path, page.document("zerograd leaderboard", parts))


def _head(made: Sequence[Table]) -> str:
    table = made[0]
    best = table.lines[0]
    losers = [_called(line, table) for line in table.lines if line.verdict == "below"]
    below = f"; below {table.reference}: {', '.join(losers)}" if losers else ""
    said = f"{_called(best, table)} on {table.title}{below}"
    return f"""<header><p class="brand">zerograd <span>leaderboard</span></p><h1><b class="after">{page.percent(best.value)}</b>
<span>{escape(said)}</span></h1></header>"""


def _called(line: Line, table: Table) -> str:
    """A method's name, with its scheme where it has several."""
    return f"{line.method} on {line.scheme}" if sum(other.method == line.method for other in table.lines) > 1 else line.method


def _scatter(table: Table, label: str, across: Callable[[Line], float], title: str) -> str:
    """Dots with intervals. A method farther below the untouched model than the best is above it stands at the lower edge."""
    figure, axes = page.drawing(label)
    best = max(line.value for line in table.lines)
    span = max(best - table.before, LEAST)
    floor = table.before - span
    points = []
    for line in table.lines:
        colour, x, below = page.COLOURS[COLOUR[line.verdict]], across(line), line.value < floor
        if line.interval:
            axes.plot([x] * 2, [100 * end for end in line.interval], color=colour, linewidth=0.8, alpha=0.5)
        y = 100 * max(line.value, floor)
        axes.plot([x], [y], color=colour, marker="v" if below else "o", markersize=2 * DOT)
        name = f"{_called(line, table)} {100 * line.value:.1f}" if below else _called(line, table)
        points.append((line.verdict == "even", name, x, y))
    axes.axhline(100 * table.before, color=page.COLOURS["line"], linestyle="--", linewidth=1)
    axes.margins(x=0.15)
    axes.set_ylim(100 * (floor - span / 10), 100 * (best + span / 3))
    _name(figure, axes, [point[1:] for point in sorted(points, key=itemgetter(0))])
    names = {"above": f"above {table.reference}", "even": "even", "below": "below", "": table.reference}
    key = {COLOUR[verdict]: escape(name) for verdict, name in names.items() if any(line.verdict == verdict for line in table.lines)}
    return page.figure(figure, f"{title}, at matched {table.budget}, %", key)


def _name(figure: Figure, axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write the names of dots beside them, those that stand first first. One for which there is no room is left to the table."""
    figure.draw_without_rendering()  # which settles where the axes are
    unit = figure.dpi / 72
    dots = [axes.transData.transform(point[1:]) / unit for point in points]
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
            where: dict[str, Any] = {"textcoords": "offset points", "fontsize": NAME, "ha": side, "color": page.COLOURS["mute"]}
            axes.annotate(name, (x, y), (right, above), **where).set_in_layout(False)
            break


def _curves(table: Table, found: Sequence[Row]) -> str:
    """Dev loss against seconds, means over seeds, of the best methods and the reference."""
    lines = sorted(table.lines, key=lambda line: not line.is_reference)[: len(page.RUNS)]
    figure, axes = page.drawing("training time, s")
    for colour, line in zip(page.RUNS, lines, strict=False):
        curves = [row.get("curve", []) for row in found if (row["method"], row["scheme"]) == (line.method, line.scheme)]
        looks = list(zip(*curves, strict=False))  # of each seed, the first, the second, ...
        times = [fmean(look["seconds"] for look in each) for each in looks]
        losses = [fmean(look.get("dev_loss", float("nan")) for look in each) for each in looks]
        axes.plot(times, losses, color=page.COLOURS[colour], linewidth=1.6, marker="o", markersize=3)
    key = {colour: escape(line.method) for colour, line in zip(page.RUNS, lines, strict=False)}
    return page.figure(figure, "Dev loss against seconds, mean over seeds", key)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in tables.heads(table))
    body = ""
    for line in table.lines:
        texts = [escape(text) for text in tables.cells(line)]
        kind = KIND[line.verdict]
        texts[5] = texts[5] and f'<mark class="{kind}">{texts[5]}</mark>'
        body += "<tr>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
