"""A leaderboard as one self-contained page: accuracy against seconds and against memory, and every table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import fmean

from zerograd.bench import rows, tables
from zerograd.bench.rows import Row
from zerograd.bench.tables import Line, Place, Table
from zerograd.train import page
from zerograd.train.files import write_text

COLOUR = {"above": "run2", "below": "run1", "even": "before", "": "ink"}
"""Of a method in a figure, by its verdict against the reference."""

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
    losers = [line.method for line in table.lines if line.verdict == "below"]
    below = f"; below {table.reference}: {', '.join(losers)}" if losers else ""
    said = f"{best.method} on {table.title}{below}"
    return f"""<header><p class="brand">zerograd <span>leaderboard</span></p><h1><b class="after">{page.percent(best.value)}</b>
<span>{escape(said)}</span></h1></header>"""


def _scatter(table: Table, label: str, across: Callable[[Line], float], title: str) -> str:
    figure, axes = page.drawing(label)
    for line in table.lines:
        colour = page.COLOURS[COLOUR[line.verdict]]
        if line.interval:
            axes.plot([across(line)] * 2, [100 * end for end in line.interval], color=colour, linewidth=0.8, alpha=0.5)
        axes.plot([across(line)], [100 * line.value], color=colour, marker="o", markersize=4.5)
        axes.annotate(
            line.method,
            (across(line), 100 * line.value),
            (4, 2),
            textcoords="offset points",
            fontsize=6.5,
            color=page.COLOURS["mute"],
        )
    axes.axhline(100 * table.before, color=page.COLOURS["line"], linestyle="--", linewidth=1)
    axes.margins(x=0.15, y=0.08)
    names = {"above": f"above {table.reference}", "even": "even", "below": "below", "": table.reference}
    key = {COLOUR[verdict]: escape(name) for verdict, name in names.items() if any(line.verdict == verdict for line in table.lines)}
    return page.figure(figure, f"{title}, at matched {table.budget}, %", key)


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
