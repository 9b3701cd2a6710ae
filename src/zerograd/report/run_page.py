"""A run's report: one self-contained HTML page with the result, its curves, its memory and its predictions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from zerograd.machine.files import write_text
from zerograd.report import html as page

Row = Mapping[str, Any]

EXAMPLES = 8
"""How many rows of each kind of change are shown."""

MOST_OPTIONS = 12
"""Options beyond which a table of confusions is no picture."""

_VERDICTS = {1: ("good", "Clear gain"), 0: ("even", "No clear change"), -1: ("bad", "Clear loss")}


def write(path: Path, result: Row, history: Sequence[Row], predictions: Sequence[Row]) -> None:
    """Write the report of a finished run; a reader sees the old file or the whole new one, never a part.

    result: the run's numbers, settings and versions; metrics in their own units, times in seconds. history: the logged steps,
    perhaps none. predictions: the test rows with the options chosen before and after tuning. Raises KeyError where a number
    that the page needs is absent; the baseline of fitted offsets and the byte counts may be None.
    """
    parts = (
        _head(result), _table(result), '<div class="two">', _loss(history), _dev(result, history), _memory(result),
        _confusion(predictions), "</div>", _changes(predictions), _examples(predictions), _margins(predictions),
        _calibration(predictions), _answers(predictions), _signal(result, history), _settings(result),
    )  # fmt: skip
    write_text(path, page.document(f"{result['task']}, {result['model']}", parts))


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947): gains and losses are equally likely, a binomial with 1/2."""
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2 ** (gained + lost)))


def _head(result: Row) -> str:
    before, after = result["value_before"], result["value_after"]
    shown, points = page.formats(result)
    spent = f"on {page.count(result['test_rows'], 'test row')} in {page.seconds(result['seconds'])}, "
    spent += f"{page.count(result['steps'], 'step')}, "
    spent += page.passes(result)
    verdicts = ""
    for name, value, gain in (
        ("zero-shot", before, result["ci_gain"]),
        ("zero-shot with fitted offsets", result.get("value_calibrated"), result.get("ci_gain_calibrated")),
    ):
        if gain:
            kind, word = _VERDICTS[(gain[0] > 0) - (gain[1] < 0)]
            said = f"{points(after - value, '+')} over {name}, 95\u00a0% interval {page.interval(result, gain, '+')}"
            verdicts += f'<p class="verdict"><mark class="{kind}">{word}</mark> {said}</p>'
    facts = {
        "Model": result["model"], "Task": result["task"], "Metric": result["metric"], "Method": result["method"],
        "Scheme": result["scheme"],
        "Seed": result["seed"], "Time a step": page.seconds(result["seconds_per_step"]),
        "Total time": page.seconds(result["seconds_total"]), "Skipped steps": f"{result['skipped_steps']:,}", "Run": result["run"],
    }  # fmt: skip
    cells = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items())
    stopped = f'<p class="note"><b>Stopped.</b> {escape(str(result["stopped"]))}</p>' if result.get("stopped") else ""
    return f"""<header><p class="brand">zerograd <span>run report</span></p><h1><b class="before">{shown(before)}</b> <i>→</i>
<b class="after">{shown(after)}</b> <span>{spent}</span></h1>
{verdicts}{stopped}<dl>{cells}</dl></header>"""


def _table(result: Row) -> str:
    rows = (
        ("before", "Majority class", "value_majority", "", ""),
        ("before", "Zero-shot", "value_before", "ci_before", "ci_gain"),
        ("before", "In context", "value_shots", "ci_shots", "ci_gain_shots"),
        ("fit", "Zero-shot, offsets fitted on training rows", "value_calibrated", "ci_calibrated", "ci_gain_calibrated"),
        ("after", "Tuned", "value_after", "ci_after", ""),
    )
    found = [(*row[:2], result[row[2]], result.get(row[3]), result.get(row[4])) for row in rows if result.get(row[2]) is not None]
    shown, points = page.formats(result)
    ends = [end for *_, interval, _ in found if interval for end in interval]
    room = 0.1 * (max(ends) - min(ends)) or 0.02
    low, high = min(ends) - room, max(ends) + room
    body = ""
    for colour, name, value, interval, gain in found:
        left, right, dot = (100 * np.clip((end - low) / (high - low), 0, 1) for end in (*(interval or (value, value)), value))
        track = f'<i style="left:{left:.2f}%;width:{right - left:.2f}%"></i><b style="left:{dot:.2f}%"></b>' if interval else ""
        gains = (
            f"{points(result['value_after'] - value, '+')} {page.interval(result, gain, '+')}" if gain and colour != "after" else ""
        )
        body += f"""<tr class="{colour}"><th scope="row">{name}</th><td class="big">{shown(value)}</td>
<td class="track">{track and f"<div>{track}</div>"}</td><td data-name="95 % interval">{page.interval(result, interval)}</td>
<td data-name="Tuned gains">{gains}</td></tr>"""
    head = f'<th class="track"><span>{shown(low)}</span><span>{shown(high)}</span></th>'
    head = f"<th></th><th>{escape(result['metric'].capitalize())}</th>{head}<th>95\u00a0% interval</th><th>Tuned gains</th>"
    note = "Gains are paired differences on the same test rows, with 95\u00a0% intervals."
    if result.get("value_calibrated") is not None:
        note += " Fitted offsets correct only a bias toward an option; what tuning gains over them is more than that."
    return page.section("Result", f'<table class="result"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>', note)


def _loss(history: Sequence[Row]) -> str:
    time, loss = page.finite(history, "seconds", "loss")
    if not len(time):
        return page.section("Training loss", note="No step was logged.")
    window = max(1, min(51, len(loss) // 10 * 2 + 1))
    ones = np.ones(window)
    smooth = np.convolve(loss, ones, "same") / np.convolve(np.ones_like(loss), ones, "same")
    every = slice(None, None, -(-len(loss) // 2000))
    figure, axes = page.drawing("training time, s", 1.02 * max(row["seconds"] for row in history))
    axes.plot(
        time[every], loss[every], color=page.COLOURS["before"], linewidth=0.8, alpha=0.6, marker="o" if len(time) == 1 else ""
    )
    axes.plot(time[every], smooth[every], color=page.COLOURS["after"], linewidth=1.8)
    return page.figure(figure, "Training loss", {"before": "logged step", "after": f"mean of {page.count(window, 'logged step')}"})


def _dev(result: Row, history: Sequence[Row]) -> str:
    metric, logged, scale = result["metric"], "dev_value", 100 if page.is_share(result) else 1
    if not any(logged in row for row in history):
        metric, logged, scale = "loss", "dev_loss", 1
    time, value = page.finite(history, "seconds", logged)
    if not len(time):
        return page.section("Dev", note="No evaluation was logged.")
    figure, axes = page.drawing("training time, s", 1.02 * max(row["seconds"] for row in history))
    key = {"after": "tuned (dev)"}
    for colour, name, field in (("before", "zero-shot", "value_before"), ("fit", "fitted offsets", "value_calibrated")):
        if metric != "loss" and result.get(field) is not None:
            axes.axhline(scale * result[field], color=page.COLOURS[colour], linewidth=1.4, linestyle=(0, (4, 2)))
            key[f"{colour} dash"] = f"{name} (test)"
    axes.plot(time, scale * value, color=page.COLOURS["after"], linewidth=1.8, marker="o", markersize=3.5)
    axes.margins(y=0.12)
    return page.figure(figure, f"Dev {metric}" + (", %" if scale == 100 else ""), key)


def _memory(result: Row) -> str:
    names = {"inference_peak_bytes": "Inference peak", "peak_bytes": "Training peak", "weight_bytes": "Weights"}
    sizes = {field: result[field] for field in names if result.get(field)}
    if not sizes:
        return page.section("Memory", note="Memory was not measured.")
    bars = "".join(
        f'<div class="bar"><span>{names[field]}</span><b>{size / 1e6:,.0f} MB</b>'
        f'<i class="{field}" style="width:{100 * size / max(sizes.values()):.2f}%"></i></div>'
        for field, size in sizes.items()
    )
    note = "1 MB is 10<sup>6</sup> bytes."
    if "peak_bytes" in sizes and "inference_peak_bytes" in sizes:
        note = f"Training peaked at {sizes['peak_bytes'] / sizes['inference_peak_bytes']:.2f} times the memory of inference. {note}"
    return page.section("Memory", bars, note)


def _confusion(predictions: Sequence[Row]) -> str:
    if not predictions:
        return page.section("Confusion", note="No prediction was recorded.")
    if not _has_common_options(predictions):
        return ""
    names, tables = _names(predictions), ""
    chosen = sorted(row[f"option_{when}"].strip() for row in predictions for when in ("before", "after"))
    options = list(dict.fromkeys([*names.values(), *chosen]))
    for when in ("before", "after"):
        counts = Counter((row["label"], row[f"option_{when}"].strip()) for row in predictions)
        body = ""
        for label in sorted({row["label"] for row in predictions}):
            total = sum(counts[label, option] for option in options)
            body += f"<tr><th>{escape(names.get(label, f'label {label}'))}</th>"
            for option in options:
                kind, share = "hit" if option == names.get(label) else "miss", counts[label, option] / total
                body += f'<td class="{kind}" style="--share:{100 * share:.0f}%">{counts[label, option]:,}'
                body += f"<small>{page.percent(share)}</small></td>"
            body += "</tr>"
        head = "".join(f"<th>{escape(option)}</th>" for option in options)
        tables += f"<table><caption>{when.title()}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    note = "Row: true label. Column: chosen option. Shares are of the row."
    return page.section("Confusion", f'<div class="confusion">{tables}</div>', note)


def _has_common_options(predictions: Sequence[Row]) -> bool:
    said = {row[f"option_{when}"] for row in predictions for when in ("before", "after")}
    return "label" in predictions[0] and len(said) <= MOST_OPTIONS


def _answers(predictions: Sequence[Row]) -> str:
    """The rows whose loss changed most, of a task whose answers are free."""
    if not predictions or "label" in predictions[0]:
        return ""
    cards = ""
    for row in sorted(predictions, key=lambda row: row["loss_after"] - row["loss_before"])[:EXAMPLES]:
        said = f"<p>{escape(row['option_before'])} → <b>{escape(row['option_after'])}</b></p>" if row["option_after"] else ""
        about = f"Loss {row['loss_before']:.3f} → {row['loss_after']:.3f} · right: {row['reference']} · {row['id']}"
        cards += f'<article><p dir="auto">{escape(page.short(row["text"]))}</p>{said}<p class="small">{escape(about)}</p></article>'
    return page.section("Answers", f'<div class="three">{cards}</div>', "The rows of the test split whose loss fell most.")


def _changes(predictions: Sequence[Row]) -> str:
    if not predictions or "right_before" not in predictions[0]:
        return ""
    sides = Counter((bool(row["right_before"]), bool(row["right_after"])) for row in predictions)
    gained, lost = sides[False, True], sides[True, False]
    kinds = (
        ("keep", sides[True, True], "right both times"), ("gain", gained, "gained: wrong → right"),
        ("lose", lost, "lost: right → wrong"), ("still", sides[False, False], "wrong both times"),
    )  # fmt: skip
    bar = "".join(f'<i class="{kind}" style="flex-grow:{count}"></i>' for kind, count, _ in kinds if count)
    tiles = "".join(f'<div class="{kind}"><b>{count:,}</b><span>{name}</span></div>' for kind, count, name in kinds)
    note = f"McNemar exact p {page.power(mcnemar(gained, lost))}, two-sided: the chance of a split at least this uneven among "
    note += f"{page.count(gained + lost, 'changed row')} if gains and losses were equally likely."
    return page.section("Gained and lost", f'<div class="split">{bar}</div><div class="tiles">{tiles}</div>', note)


def _examples(predictions: Sequence[Row]) -> str:
    if not predictions or "label" not in predictions[0]:
        return ""
    names, columns = _names(predictions), ""
    ordered = sorted(predictions, key=lambda row: -abs(row["margin_after"] - row["margin_before"]))
    for title, sides in (("Gained", (False, True)), ("Lost", (True, False)), ("Still wrong", (False, False))):
        rows = [row for row in ordered if (row["right_before"], row["right_after"]) == sides]
        cards = ""
        for row in rows[:EXAMPLES]:
            text = page.short(row["text"])
            moves = (
                f'<b class="{"good" if right else "bad"}">{escape(row[f"option_{when}"].strip())} {"✓" if right else "✗"}</b>'
                for when, right in zip(("before", "after"), sides, strict=True)
            )
            margins = f"Margin {page.signed(row['margin_before'], 2)} → {page.signed(row['margin_after'], 2)}"
            about = escape(f"{margins} · right: {names.get(row['label'], row['label'])} · {row['id']}")
            cards += f'<article><p dir="auto">{escape(text)}</p><p>{" → ".join(moves)}</p><p class="small">{about}</p></article>'
        cards = cards or '<p class="small">No such row.</p>'
        columns += f"<div><h3>{title} <span>{min(len(rows), EXAMPLES)} of {len(rows):,}</span></h3>{cards}</div>"
    note = "Margin: the score of the right option minus the best other; above 0 is right. Largest changes first."
    return page.section("Predictions before and after", f'<p class="small">{note}</p><div class="three">{columns}</div>')


def _margins(predictions: Sequence[Row]) -> str:
    if predictions and "label" not in predictions[0]:
        return ""
    before, after = page.finite(predictions, "margin_before", "margin_after")
    if not len(before):
        return page.section("Margins", note="No margin was recorded.")
    figure, axes = page.drawing("margin")
    bins = np.histogram_bin_edges(np.concatenate([before, after]), bins=40).tolist()
    axes.hist(before, bins=bins, color=page.COLOURS["before"], alpha=0.45)
    axes.hist(after, bins=bins, color=page.COLOURS["after"], alpha=0.2)
    axes.hist(after, bins=bins, color=page.COLOURS["after"], histtype="step", linewidth=1.6)
    axes.axvline(0, color=page.COLOURS["ink"], linewidth=0.9, linestyle=(0, (2, 2)))
    body = ""
    for level in (5, 25, 50, 75, 95):
        cells = "".join(f"<td>{page.signed(float(np.percentile(side, level)), 2)}</td>" for side in (before, after))
        body += f"<tr><th>{f'{level}th percentile' if level != 50 else 'Median'}</th>{cells}</tr>"
    table = f"<table><thead><tr><td></td><th>Before</th><th>After</th></tr></thead><tbody>{body}</tbody></table>"
    drawn = page.figure(figure, "Margins of the test rows", {"before": "before", "after": "after"})
    note = "Rows to the right of 0, the dashed line, are right. A wider spread is a more decided model, not in itself a better one."
    return f'<div class="two">{drawn}{page.section("Margins in numbers", table, note)}</div>'


def calibration_error(predictions: Sequence[Row], when: str) -> float:
    """The expected calibration error (Guo et al. 2017): how far, in the mean over rows, the share that is right in a tenth of
    probabilities is from their mean."""
    return sum(n * abs(right - probability) for probability, right, n in _tenths(predictions, when)) / len(predictions)


def _tenths(predictions: Sequence[Row], when: str) -> list[tuple[float, float, int]]:
    """(mean probability, share that is right, rows) of the rows in each tenth of the chosen option's probability."""
    found: dict[int, list[Row]] = {}
    for row in predictions:
        found.setdefault(min(9, int(10 * row[f"probability_{when}"])), []).append(row)
    mean = [(sum(r[f"probability_{when}"] for r in rows) / len(rows), rows) for _, rows in sorted(found.items())]
    return [(probability, sum(bool(r[f"right_{when}"]) for r in rows) / len(rows), len(rows)) for probability, rows in mean]


def _calibration(predictions: Sequence[Row]) -> str:
    """How often an option is right that was chosen with a probability."""
    if not predictions or "probability_after" not in predictions[0]:
        return ""
    figure, axes = page.drawing("probability of the chosen option, %")
    axes.plot([0, 100], [0, 100], color=page.COLOURS["mute"], linewidth=0.9, linestyle=(0, (2, 2)))
    body = ""
    for when in ("before", "after"):
        tenths = _tenths(predictions, when)
        axes.plot(
            [100 * p for p, *_ in tenths], [100 * r for _, r, _ in tenths], color=page.COLOURS[when], marker="o", markersize=3.5
        )
        for probability, right, rows in tenths:
            half = 100 * 1.96 * (right * (1 - right) / rows) ** 0.5
            axes.plot([100 * probability] * 2, [100 * right - half, 100 * right + half], color=page.COLOURS[when], linewidth=1)
        body += f"<tr><th>{when.title()}</th><td>{page.percent(calibration_error(predictions, when))}</td></tr>"
    axes.set_xlim(100 * min(row[f"probability_{when}"] for row in predictions for when in ("before", "after")) - 2, 102)
    table = f"<table><thead><tr><td></td><th>Expected calibration error</th></tr></thead><tbody>{body}</tbody></table>"
    drawn = page.figure(figure, "Right, % of rows, by probability", {"before": "before", "after": "after"})
    note = "On the dotted line a probability means what it says; below it the model is too sure. Bars are 95\u00a0% intervals."
    return f'<div class="two">{drawn}{page.section("Calibration", table, note)}</div>'


def _signal(result: Row, history: Sequence[Row]) -> str:
    """What the scores say of the batch size."""
    if not any("noise_scale" in row for row in history):
        return ""
    scale, ratio = result.get("noise_scale"), result.get("signal_to_noise")
    note = (
        "Measured at each evaluation along random directions that a whole batch shared. The noise scale is the number of examples "
        "at which the signal of a batch is as large as its noise: a much smaller batch learns mostly noise, a much larger one "
        "gains little."
    )
    if scale is None:
        said = "No signal was seen above the noise: a larger batch, a larger eps or more steps may show one."
        return page.section("Signal and noise", f"<p>{said}</p>", note)
    low, high = result.get("noise_scale_range") or (None, None)
    ends = f" ({low:,.0f} to {f'{high:,.0f}' if high else 'no bound'}, one standard error)" if low else ""
    rows = (("Noise scale, examples", f"{scale:,.0f}{ends}"), ("Signal to noise of a step's batch", f"{ratio:.2g}"))
    body = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows)
    return page.section("Signal and noise", f"<table><tbody>{body}</tbody></table>", note)


def _settings(result: Row) -> str:
    tables = ""
    for title in ("settings", "versions"):
        rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in _flat(result[title]))
        tables += f"<div><h3>{title.title()}</h3><table><tbody>{rows}</tbody></table></div>"
    return f'<details><summary>Settings and versions</summary><div class="two">{tables}</div></details>'


def _names(predictions: Iterable[Row]) -> dict[int, str]:
    """The option of each label, in the order of labels, as far as a right prediction shows it."""
    right = ((row["label"], row[f"option_{when}"]) for row in predictions for when in ("before", "after") if row[f"right_{when}"])
    return {label: option.strip() for label, option in sorted(set(right))}


def _flat(tree: Row, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
