"""A run's report: one self-contained HTML page with the result, its curves, its memory and its predictions.

The page needs no script and no network. Curves are inline SVG; their colours are the page's CSS variables, so that they
follow the reader's light or dark setting.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zerograd.text.metrics import METRICS
from zerograd.train.files import write_text

Row = Mapping[str, Any]

EXAMPLES = 8
"""How many rows of each kind of change are shown."""

MOST_OPTIONS = 12
"""Options beyond which a table of confusions is no picture."""

_COLOURS = {"ink": "#010101", "mute": "#020202", "line": "#030303", "before": "#040404", "fit": "#050505", "after": "#060606"}
_DRAWING: Any = {"svg.fonttype": "none", "svg.hashsalt": "zerograd", "font.size": 9.0, "axes.linewidth": 0.7}
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
        _answers(predictions), _settings(result),
    )  # fmt: skip
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{escape(f"{result['task']}, {result['model']}")}</title>
<style>{_CSS}</style></head><body><main>{"".join(parts)}</main></body></html>
"""
    write_text(path, page)


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947): gains and losses are equally likely, a binomial with 1/2."""
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2 ** (gained + lost)))


def _head(result: Row) -> str:
    before, after = result["value_before"], result["value_after"]
    shown, points = _format(result)
    spent = f"on {_count(result['test_rows'], 'test row')} in {_seconds(result['seconds'])}, {_count(result['steps'], 'step')}, "
    spent += f"{_count(result['forwards'], 'forward pass', 'forward passes')}, no backward pass"
    verdicts = ""
    for name, value, gain in (
        ("zero-shot", before, result["ci_gain"]),
        ("zero-shot with fitted offsets", result.get("value_calibrated"), result.get("ci_gain_calibrated")),
    ):
        if gain:
            kind, word = _VERDICTS[(gain[0] > 0) - (gain[1] < 0)]
            said = f"{points(after - value, '+')} over {name}, 95\u00a0% interval {_interval(result, gain, '+')}"
            verdicts += f'<p class="verdict"><mark class="{kind}">{word}</mark> {said}</p>'
    facts = {
        "Model": result["model"], "Task": result["task"], "Metric": result["metric"], "Method": result["method"],
        "Scheme": result["scheme"],
        "Seed": result["seed"], "Time a step": _seconds(result["seconds_per_step"]),
        "Total time": _seconds(result["seconds_total"]), "Skipped steps": f"{result['skipped_steps']:,}", "Run": result["run"],
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
    shown, points = _format(result)
    ends = [end for *_, interval, _ in found if interval for end in interval]
    room = 0.1 * (max(ends) - min(ends)) or 0.02
    low, high = min(ends) - room, max(ends) + room
    body = ""
    for colour, name, value, interval, gain in found:
        left, right, dot = (100 * np.clip((end - low) / (high - low), 0, 1) for end in (*(interval or (value, value)), value))
        track = f'<i style="left:{left:.2f}%;width:{right - left:.2f}%"></i><b style="left:{dot:.2f}%"></b>' if interval else ""
        gains = f"{points(result['value_after'] - value, '+')} {_interval(result, gain, '+')}" if gain and colour != "after" else ""
        body += f"""<tr class="{colour}"><th scope="row">{name}</th><td class="big">{shown(value)}</td>
<td class="track">{track and f"<div>{track}</div>"}</td><td data-name="95 % interval">{_interval(result, interval)}</td>
<td data-name="Tuned gains">{gains}</td></tr>"""
    head = f'<th class="track"><span>{shown(low)}</span><span>{shown(high)}</span></th>'
    head = f"<th></th><th>{escape(result['metric'].capitalize())}</th>{head}<th>95\u00a0% interval</th><th>Tuned gains</th>"
    note = "Gains are paired differences on the same test rows, with 95\u00a0% intervals."
    if result.get("value_calibrated") is not None:
        note += " Fitted offsets correct only a bias toward an option; what tuning gains over them is more than that."
    return _section("Result", f'<table class="result"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>', note)


def _loss(history: Sequence[Row]) -> str:
    time, loss = _finite(history, "seconds", "loss")
    if not len(time):
        return _section("Training loss", note="No step was logged.")
    window = max(1, min(51, len(loss) // 10 * 2 + 1))
    ones = np.ones(window)
    smooth = np.convolve(loss, ones, "same") / np.convolve(np.ones_like(loss), ones, "same")
    every = slice(None, None, -(-len(loss) // 2000))
    figure, axes = _drawing("training time, s", 1.02 * max(row["seconds"] for row in history))
    axes.plot(time[every], loss[every], color=_COLOURS["before"], linewidth=0.8, alpha=0.6, marker="o" if len(time) == 1 else "")
    axes.plot(time[every], smooth[every], color=_COLOURS["after"], linewidth=1.8)
    return _figure(figure, "Training loss", {"before": "logged step", "after": f"mean of {_count(window, 'logged step')}"})


def _dev(result: Row, history: Sequence[Row]) -> str:
    metric, logged, scale = result["metric"], "dev_value", 100 if _is_share(result) else 1
    if not any(logged in row for row in history):
        metric, logged, scale = "loss", "dev_loss", 1
    time, value = _finite(history, "seconds", logged)
    if not len(time):
        return _section("Dev", note="No evaluation was logged.")
    figure, axes = _drawing("training time, s", 1.02 * max(row["seconds"] for row in history))
    key = {"after": "tuned (dev)"}
    for colour, name, field in (("before", "zero-shot", "value_before"), ("fit", "fitted offsets", "value_calibrated")):
        if metric != "loss" and result.get(field) is not None:
            axes.axhline(scale * result[field], color=_COLOURS[colour], linewidth=1.4, linestyle=(0, (4, 2)))
            key[f"{colour} dash"] = f"{name} (test)"
    axes.plot(time, scale * value, color=_COLOURS["after"], linewidth=1.8, marker="o", markersize=3.5)
    axes.margins(y=0.12)
    return _figure(figure, f"Dev {metric}" + (", %" if scale == 100 else ""), key)


def _memory(result: Row) -> str:
    names = {"inference_peak_bytes": "Inference peak", "peak_bytes": "Training peak", "weight_bytes": "Weights"}
    sizes = {field: result[field] for field in names if result.get(field)}
    if not sizes:
        return _section("Memory", note="Memory was not measured.")
    bars = "".join(
        f'<div class="bar"><span>{names[field]}</span><b>{size / 1e6:,.0f} MB</b>'
        f'<i class="{field}" style="width:{100 * size / max(sizes.values()):.2f}%"></i></div>'
        for field, size in sizes.items()
    )
    note = "1 MB is 10<sup>6</sup> bytes."
    if "peak_bytes" in sizes and "inference_peak_bytes" in sizes:
        note = f"Training peaked at {sizes['peak_bytes'] / sizes['inference_peak_bytes']:.2f} times the memory of inference. {note}"
    return _section("Memory", bars, note)


def _confusion(predictions: Sequence[Row]) -> str:
    if not predictions:
        return _section("Confusion", note="No prediction was recorded.")
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
                body += f"<small>{_percent(share)}</small></td>"
            body += "</tr>"
        head = "".join(f"<th>{escape(option)}</th>" for option in options)
        tables += f"<table><caption>{when.title()}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    note = "Row: true label. Column: chosen option. Shares are of the row."
    return _section("Confusion", f'<div class="confusion">{tables}</div>', note)


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
        cards += f'<article><p dir="auto">{escape(_short(row["text"]))}</p>{said}<p class="small">{escape(about)}</p></article>'
    return _section("Answers", f'<div class="three">{cards}</div>', "The rows of the test split whose loss fell most.")


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
    note = f"McNemar exact p {_power(mcnemar(gained, lost))}, two-sided: the chance of a split at least this uneven among "
    note += f"{_count(gained + lost, 'changed row')} if gains and losses were equally likely."
    return _section("Gained and lost", f'<div class="split">{bar}</div><div class="tiles">{tiles}</div>', note)


def _examples(predictions: Sequence[Row]) -> str:
    if not predictions or "label" not in predictions[0]:
        return ""
    names, columns = _names(predictions), ""
    ordered = sorted(predictions, key=lambda row: -abs(row["margin_after"] - row["margin_before"]))
    for title, sides in (("Gained", (False, True)), ("Lost", (True, False)), ("Still wrong", (False, False))):
        rows = [row for row in ordered if (row["right_before"], row["right_after"]) == sides]
        cards = ""
        for row in rows[:EXAMPLES]:
            text = _short(row["text"])
            moves = (
                f'<b class="{"good" if right else "bad"}">{escape(row[f"option_{when}"].strip())} {"✓" if right else "✗"}</b>'
                for when, right in zip(("before", "after"), sides, strict=True)
            )
            margins = f"Margin {_signed(row['margin_before'], 2)} → {_signed(row['margin_after'], 2)}"
            about = escape(f"{margins} · right: {names.get(row['label'], row['label'])} · {row['id']}")
            cards += f'<article><p dir="auto">{escape(text)}</p><p>{" → ".join(moves)}</p><p class="small">{about}</p></article>'
        cards = cards or '<p class="small">No such row.</p>'
        columns += f"<div><h3>{title} <span>{min(len(rows), EXAMPLES)} of {len(rows):,}</span></h3>{cards}</div>"
    note = "Margin: the score of the right option minus the best other; above 0 is right. Largest changes first."
    return _section("Predictions before and after", f'<p class="small">{note}</p><div class="three">{columns}</div>')


def _short(text: str) -> str:
    return text if len(text) <= 320 else text[:319] + "…"


def _margins(predictions: Sequence[Row]) -> str:
    if predictions and "label" not in predictions[0]:
        return ""
    before, after = _finite(predictions, "margin_before", "margin_after")
    if not len(before):
        return _section("Margins", note="No margin was recorded.")
    figure, axes = _drawing("margin")
    bins = np.histogram_bin_edges(np.concatenate([before, after]), bins=40).tolist()
    axes.hist(before, bins=bins, color=_COLOURS["before"], alpha=0.45)
    axes.hist(after, bins=bins, color=_COLOURS["after"], alpha=0.2)
    axes.hist(after, bins=bins, color=_COLOURS["after"], histtype="step", linewidth=1.6)
    axes.axvline(0, color=_COLOURS["ink"], linewidth=0.9, linestyle=(0, (2, 2)))
    body = ""
    for level in (5, 25, 50, 75, 95):
        cells = "".join(f"<td>{_signed(float(np.percentile(side, level)), 2)}</td>" for side in (before, after))
        body += f"<tr><th>{f'{level}th percentile' if level != 50 else 'Median'}</th>{cells}</tr>"
    table = f"<table><thead><tr><td></td><th>Before</th><th>After</th></tr></thead><tbody>{body}</tbody></table>"
    drawn = _figure(figure, "Margins of the test rows", {"before": "before", "after": "after"})
    note = "Rows to the right of 0, the dashed line, are right. A wider spread is a more decided model, not in itself a better one."
    return f'<div class="two">{drawn}{_section("Margins in numbers", table, note)}</div>'


def _settings(result: Row) -> str:
    tables = ""
    for title in ("settings", "versions"):
        rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in _flat(result[title]))
        tables += f"<div><h3>{title.title()}</h3><table><tbody>{rows}</tbody></table></div>"
    return f'<details><summary>Settings and versions</summary><div class="two">{tables}</div></details>'


def _section(title: str, body: str = "", note: str = "") -> str:
    return f"<section><h2>{title}</h2>{body}{note and f'<p class=small>{note}</p>'}</section>"


def _drawing(label: str, right: float = 0.0) -> tuple[Figure, Axes]:
    with style.context(["default", _DRAWING]):
        figure = Figure(figsize=(5.0, 2.7), layout="constrained")
        axes = figure.add_subplot()
    if right:
        axes.set_xlim(0, right)
    axes.set_xlabel(label, color=_COLOURS["mute"])
    axes.tick_params(colors=_COLOURS["mute"], length=0)
    axes.grid(axis="y", color=_COLOURS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(_COLOURS["line"])
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def _figure(figure: Figure, title: str, key: Mapping[str, str]) -> str:
    """The figure as inline SVG, with the colours by name and without prolog, fixed size and needless ids."""
    text = io.StringIO()
    with style.context(["default", _DRAWING]):
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    tag, rest = text.getvalue().partition("<svg")[2].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', tag)
    svg = f'<svg role="img" aria-label="{title}" {box[0] if box else ""}>' + re.sub(r'<g id="[^"]*"', "<g", rest)
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    entries = "".join(f'<span class="key {colour}">{name}</span>' for colour, name in key.items())
    return f"<figure><figcaption><h2>{title}</h2><p>{entries}</p></figcaption>{svg}</figure>"


def _finite(rows: Iterable[Row], x: str, y: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The pairs that are present and finite, (2, n)."""
    pairs = ((row.get(x), row.get(y)) for row in rows)
    return np.array([pair for pair in pairs if all(v is not None and math.isfinite(v) for v in pair)], float).reshape(-1, 2).T


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


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _is_share(result: Row) -> bool:
    """Whether the metric is a share of the rows, or a mean of shares, and is shown in percent."""
    return result["metric"] in METRICS


def _format(result: Row) -> tuple[Callable[[float], str], Callable[[float, str], str]]:
    """(a value, a difference) of the run's metric as text: percent and points, or plain numbers."""
    if _is_share(result):
        return _percent, lambda value, sign: f"{100 * value:{sign}.1f}".replace("-", "\u2212") + " points"
    return (
        lambda value: f"{value:.4g}".replace("-", "\u2212"),
        lambda value, sign: f"{value:{sign}.3g}".replace("-", "\u2212"),
    )


def _interval(result: Row, ends: Sequence[float] | None, sign: str = "") -> str:
    if not ends:
        return ""
    scale, digits = (100, ".1f") if _is_share(result) else (1, ".3g")
    return f"[{scale * ends[0]:{sign}{digits}}, {scale * ends[1]:{sign}{digits}}]".replace("-", "\u2212")


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _seconds(s: float) -> str:
    return f"{s * 1e3:.0f} ms" if s < 1 else f"{s:.1f} s" if s < 10 else f"{s:,.0f} s" if s < 7200 else f"{s / 3600:.1f} h"


def _power(p: float) -> str:
    """The relation and p, in three digits or as a power of ten, in HTML."""
    if p >= 1e-3:
        return f"= {p:.3f}"
    mantissa, exponent = f"{p:.1e}".split("e")
    return f"= {mantissa} · 10<sup>{_signed(int(exponent), 0)}</sup>" if p else "&lt; 10<sup>\u2212300</sup>"


_CSS = """
:root{--bg:#f5f5f2;--card:#fff;--ink:#1a1c20;--mute:#636871;--line:#e1e2e0;--before:#8d939d;--fit:#b3720f;--after:#1f5fd0;
--good:#157347;--bad:#bf362f;--shade:#f0f1ef}
@media(prefers-color-scheme:dark){:root{--bg:#121417;--card:#1b1e23;--ink:#eceef1;--mute:#9aa1ac;--line:#30343b;
--before:#8a919d;--fit:#e2a33f;--after:#74a7ff;--good:#4cc38a;--bad:#ff8079;--shade:#252930}}
*{box-sizing:border-box;margin:0}html{-webkit-text-size-adjust:100%;font-variant-numeric:tabular-nums}
body{background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:auto;padding:32px 20px 64px;display:grid;gap:20px}main>*,.two>*,.three>*{min-width:0}
h2{font-size:16px;line-height:1.3;margin-bottom:14px}h3{font-size:15px;margin-bottom:10px}span,.small,dt{color:var(--mute)}
.small,th,dt,figcaption,.key,.tiles span,article b{font-size:13px}section>.small{margin-top:14px}h3 span{font-weight:400}
header{padding:8px 0 4px}.brand{font-weight:700}.brand span{font-weight:400}
h1{font-size:clamp(27px,8vw,84px);line-height:1.05;letter-spacing:-.03em;margin:18px 0 20px}h1 b{white-space:nowrap}
h1 i{font-style:normal;font-weight:400}h1 .before,h1 i{color:var(--before)}h1 .after{color:var(--after)}
h1 span{display:block;font-size:clamp(17px,2.2vw,22px);line-height:1.4;letter-spacing:0;font-weight:400;margin-top:14px}
mark{border-radius:99px;padding:3px 12px;margin-right:6px;font-weight:600;font-size:14px;white-space:nowrap;color:var(--c);
background:color-mix(in srgb,var(--c) 14%,transparent)}.good,.gain,.hit{--c:var(--good)}.bad,.lose,.miss{--c:var(--bad)}
.verdict{margin-top:8px}.even{--c:var(--mute)}
.note{margin-top:14px;padding:10px 14px;border-left:3px solid var(--fit);background:var(--card)}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px 20px;margin-top:26px;padding-top:18px;
border-top:1px solid var(--line)}dd,article,details td,details th{overflow-wrap:anywhere}
section,figure,details,article{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px}
.two,.three{display:grid;gap:20px}.three{margin-top:16px}
.three article{background:var(--bg);padding:14px 16px;margin-bottom:12px}
@media(min-width:820px){.two{grid-template-columns:1fr 1fr}.three{grid-template-columns:1fr 1fr 1fr}}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:9px 12px 9px 0;border-top:1px solid var(--line)}
th{font-weight:400;color:var(--mute)}thead th,thead td{border:0;padding-top:0}.result td{white-space:nowrap}
.result tbody th{font-size:15px;color:var(--ink)}.result td.big,.tiles b{font-size:22px;font-weight:600}
.before{--c:var(--before)}.fit{--c:var(--fit)}.after{--c:var(--after)}tr.after th{font-weight:600}
.result .track{width:26%;padding-right:28px}.track div{position:relative;height:14px}.track span+span{float:right}
.track i,.track b{position:absolute;background:var(--c)}.track i{top:5px;height:4px;opacity:.4}
.track b{top:1px;width:12px;height:12px;margin-left:-6px;border-radius:50%}svg{display:block;width:100%;height:auto}
svg text{font-family:inherit!important}figcaption h2{margin:0}
figcaption p{display:flex;flex-wrap:wrap;gap:2px 16px;margin:4px 0 8px}
.key::before{content:"";display:inline-block;width:18px;border-top:3px solid var(--c);vertical-align:middle;margin-right:6px}
.key.dash::before{border-top-style:dashed}.bar{display:grid;grid-template-columns:1fr auto;gap:4px;margin-bottom:14px}
.bar i{grid-column:1/3;height:12px;border-radius:3px;background:var(--before)}.bar .peak_bytes{background:var(--after)}
.bar .weight_bytes{opacity:.5}.confusion{display:flex;flex-wrap:wrap;gap:16px 28px;overflow-x:auto}
.confusion table{flex:1;width:auto}caption{text-align:left;font-weight:600;font-size:14px;padding-bottom:6px}
.confusion thead th{text-align:center}
.confusion tbody td{text-align:center;padding:9px;border:2px solid var(--card);font-weight:600;
background:color-mix(in srgb,var(--c) calc(var(--share)*.55),var(--shade))}td small{display:block;font-weight:400}
.split{display:flex;gap:2px;height:16px}.split i{background:var(--c);min-width:2px;border-radius:2px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:14px;margin-top:16px}
.tiles div{border-left:3px solid var(--c);padding-left:12px}.tiles b,.tiles span{display:block;line-height:1.3}
.keep{--c:color-mix(in srgb,var(--good) 35%,var(--shade))}.still{--c:color-mix(in srgb,var(--bad) 35%,var(--shade))}
article p+p{margin-top:6px}article b{color:var(--c)}summary{cursor:pointer;font-weight:600}
[open] summary{margin-bottom:16px}
@media(max-width:640px){main{padding:20px 14px 48px}main,.two{gap:14px}section,figure,details{padding:16px}
svg text{font-size:11px!important}.result thead,.result td:empty{display:none}
.result tr{display:grid;grid-template-columns:1fr auto;padding:12px 0;border-top:1px solid var(--line)}
.result tr:first-child{border:0}.result th,.result td{border:0;padding:0;font-size:14px}
.result .track,.result [data-name]{grid-column:1/3;width:auto;padding:0}
[data-name]::before{content:attr(data-name) " ";color:var(--mute)}}
"""
