"""Several runs beside each other: one self-contained page of their results, curves, time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from zerograd.machine.files import write_text
from zerograd.report import html as page
from zerograd.runs.folder import Run
from zerograd.text import intervals as statistics


def write(path: Path, runs: Sequence[Run]) -> None:
    """Write the page. runs: at least two of one task and metric, at most as many as there are colours.

    Raises ValueError for runs that cannot be compared.
    """
    if not 2 <= len(runs) <= len(page.RUNS):
        raise ValueError(f"{len(runs)} runs were given; a comparison is of 2 to {len(page.RUNS)}")
    first = runs[0]
    for run in runs[1:]:
        for name in ("task", "metric"):
            if run.result[name] != first.result[name]:
                say = f"{run.folder} has {name} {run.result[name]!r} and {first.folder} {first.result[name]!r}"
                raise ValueError(f"{say}; only runs of one {name} can be compared")
    title = f"{first.result['task']}, {len(runs)} runs"
    parts = (_head(title, runs), _table(runs), '<div class="two">', _curves(runs), _costs(runs), "</div>", _pairs(runs))
    write_text(path, page.document(title, parts))


def _head(title: str, runs: Sequence[Run]) -> str:
    best = max(runs, key=lambda run: float(run.result["value_after"]))
    shown, _ = page.formats(best.result)
    said = f"the best by {escape(best.result['metric'])}: {escape(str(best.folder))}"
    value = shown(best.result["value_after"])
    return f"""<header><p class="brand">zerograd <span>comparison</span></p><h1><b class="after">{value}</b>
<span>{escape(title)}; {said}</span></h1></header>"""


def _table(runs: Sequence[Run]) -> str:
    heads = (
        "Run",
        "Settings that differ",
        "Before",
        "After",
        "95\u00a0% interval",
        "Gain",
        "Steps",
        "Training",
        "A step",
        "Peak memory",
    )
    body = ""
    for colour, run in zip(page.RUNS, runs, strict=False):
        result = run.result
        shown, points = page.formats(result)
        gain = f"{points(result['value_after'] - result['value_before'], '+')} {page.interval(result, result['ci_gain'], '+')}"
        cells = (
            f'<span class="key {colour}"></span>{escape(str(run.folder))}', escape(_different(run, runs)),
            shown(result["value_before"]), f"<b>{shown(result['value_after'])}</b>",
            page.interval(result, result["ci_after"]), gain, f"{result['steps']:,}",
            page.seconds(result["seconds"]), page.seconds(result["seconds_per_step"]), f"{result['peak_bytes'] / 1e6:,.0f} MB",
        )  # fmt: skip
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    head = "".join(f"<th>{name}</th>" for name in heads)
    return page.section("Results", f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def _different(run: Run, runs: Sequence[Run]) -> str:
    """The settings in which a run is not like all others."""
    fields = [name for name in vars(run.settings) if name != "out"]
    differ = [name for name in fields if len({repr(getattr(other.settings, name)) for other in runs}) > 1]
    return ", ".join(f"{name} {getattr(run.settings, name)}" for name in differ) or "none"


def _curves(runs: Sequence[Run]) -> str:
    logged = "dev_value" if all(any("dev_value" in row for row in run.history) for run in runs) else "dev_loss"
    name = runs[0].result["metric"] if logged == "dev_value" else "loss"
    scale = 100 if logged == "dev_value" and page.is_share(runs[0].result) else 1
    figure, axes = page.drawing("training time, s")
    for colour, run in zip(page.RUNS, runs, strict=False):
        time, value = page.finite(run.history, "seconds", logged)
        axes.plot(time, scale * value, color=page.COLOURS[colour], linewidth=1.8, marker="o", markersize=3)
    key = {colour: escape(run.folder.name) for colour, run in zip(page.RUNS, runs, strict=False)}
    return page.figure(figure, f"Dev {name}" + (", %" if scale == 100 else ""), key)


def _costs(runs: Sequence[Run]) -> str:
    figure, axes = page.drawing("peak memory, MB")
    scale = 100 if page.is_share(runs[0].result) else 1
    for colour, run in zip(page.RUNS, runs, strict=False):
        result = run.result
        low, high = (scale * end for end in result["ci_after"])
        place, value = result["peak_bytes"] / 1e6, scale * result["value_after"]
        axes.plot([place, place], [low, high], color=page.COLOURS[colour], linewidth=1.4)
        axes.plot([place], [value], color=page.COLOURS[colour], marker="o", markersize=7)
    axes.margins(x=0.2, y=0.1)
    key = {colour: escape(run.folder.name) for colour, run in zip(page.RUNS, runs, strict=False)}
    return page.figure(figure, "Test result against memory" + (", %" if scale == 100 else ""), key)


def _pairs(runs: Sequence[Run]) -> str:
    """Each run's rows against every other's: 95 % intervals of paired differences, where the rows are the same."""
    rows = [{row["id"]: row for row in run.predictions} for run in runs]
    if any("right_after" not in row for found in rows for row in found.values()) or len({frozenset(found) for found in rows}) > 1:
        note = "The runs were not tested on the same rows, or their answers are neither right nor wrong."
        return page.section("Paired differences", note=note)
    ids = list(rows[0])
    body = ""
    for number, run in enumerate(runs):
        cells = ""
        for other in range(len(runs)):
            ours, theirs = ([float(rows[which][i]["right_after"]) for i in ids] for which in (number, other))
            low, high = statistics.paired(theirs, ours)
            kind = "hit" if low > 0 else "miss" if high < 0 else "even"
            difference = page.signed(100 * (sum(ours) - sum(theirs)) / len(ids), 1)
            ends = f"{page.signed(100 * low, 1)} to {page.signed(100 * high, 1)}"
            cells += (
                "<td></td>" if other == number else f'<td class="{kind}" style="--share:40%">{difference}<small>{ends}</small></td>'
            )
        body += f"<tr><th>{escape(run.folder.name)}</th>{cells}</tr>"
    head = "".join(f"<th>{escape(run.folder.name)}</th>" for run in runs)
    note = "Points of accuracy by which the row's run is better than the column's, paired over the test rows, 95\u00a0% intervals."
    table = f'<div class="confusion"><table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return page.section("Paired differences", table, note)
