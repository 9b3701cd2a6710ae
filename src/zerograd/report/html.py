"""Pages without script or network: sections, inline SVG figures, and how numbers are written in them.

Colours are the page's CSS variables, so that figures follow the reader's light or dark setting.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zerograd.text.metrics import METRICS

Row = Mapping[str, Any]

RUNS = tuple(f"run{number}" for number in range(8))
"""Colours of runs that are compared."""

_NAMES = ("ink", "mute", "line", "before", "fit", "after", *RUNS)

COLOURS = {name: f"#{number:02x}{number:02x}{number:02x}" for number, name in enumerate(_NAMES, 1)}
"""What stands for each of the page's colours until a figure is in it."""

_DRAWING: Any = {"svg.fonttype": "none", "svg.hashsalt": "zerograd", "font.size": 9.0, "axes.linewidth": 0.7}


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>
<style>{CSS}</style></head><body><main>{"".join(parts)}</main></body></html>
"""


def short(text: str) -> str:
    """A text as far as it fits a card."""
    return text if len(text) <= 320 else text[:319] + "…"


def section(title: str, body: str = "", note: str = "") -> str:
    """A part of the page, with a note in small print."""
    return f"<section><h2>{title}</h2>{body}{note and f'<p class=small>{note}</p>'}</section>"


def drawing(label: str, right: float = 0.0) -> tuple[Figure, Axes]:
    """An empty figure. label: of its x axis. right: where that ends."""
    with style.context(["default", _DRAWING]):
        figure = Figure(figsize=(5.0, 2.7), layout="constrained")
        axes = figure.add_subplot()
    if right:
        axes.set_xlim(0, right)
    axes.set_xlabel(label, color=COLOURS["mute"])
    axes.tick_params(colors=COLOURS["mute"], length=0)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["line"])
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def figure(figure: Figure, title: str, key: Mapping[str, str]) -> str:
    """The figure as inline SVG, with the colours by name and without prolog, fixed size and needless ids."""
    text = io.StringIO()
    with style.context(["default", _DRAWING]):
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    tag, rest = text.getvalue().partition("<svg")[2].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', tag)
    svg = f'<svg role="img" aria-label="{title}" {box[0] if box else ""}>' + re.sub(r'<g id="[^"]*"', "<g", rest)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    entries = "".join(f'<span class="key {colour}">{name}</span>' for colour, name in key.items())
    return f"<figure><figcaption><h2>{title}</h2><p>{entries}</p></figcaption>{svg}</figure>"


def finite(rows: Iterable[Row], x: str, y: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The pairs that are present and finite, (2, n)."""
    pairs = ((row.get(x), row.get(y)) for row in rows)
    return np.array([pair for pair in pairs if all(v is not None and math.isfinite(v) for v in pair)], float).reshape(-1, 2).T


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f}\u00a0%"


def signed(value: float, digits: int) -> str:
    """A number with its sign, a minus being one."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def is_share(result: Row) -> bool:
    """Whether the metric is a share of the rows, or a mean of shares, and is shown in percent."""
    return result["metric"] in METRICS


def formats(result: Row) -> tuple[Callable[[float], str], Callable[[float, str], str]]:
    """(a value, a difference) of the run's metric as text: percent and points, or plain numbers."""
    if is_share(result):
        return percent, lambda value, sign: f"{100 * value:{sign}.1f}".replace("-", "\u2212") + " points"
    return (
        lambda value: f"{value:.4g}".replace("-", "\u2212"),
        lambda value, sign: f"{value:{sign}.3g}".replace("-", "\u2212"),
    )


def interval(result: Row, ends: Sequence[float] | None, sign: str = "") -> str:
    """Both ends of an interval in the unit of the result's metric."""
    if not ends:
        return ""
    scale, digits = (100, ".1f") if is_share(result) else (1, ".3g")
    return f"[{scale * ends[0]:{sign}{digits}}, {scale * ends[1]:{sign}{digits}}]".replace("-", "\u2212")


def count(n: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def passes(result: Mapping[str, Any]) -> str:
    """What a run took of the model: '900 forward passes, no backward pass'."""
    backward = result.get("backward_passes", 0)
    if backward:
        return f"the work of {result['forwards']:,} forward passes, {backward:,} backward passes in it"
    return f"{count(result['forwards'], 'forward pass', 'forward passes')}, no backward pass"


def seconds(s: float) -> str:
    """A time."""
    return f"{s * 1e3:.0f} ms" if s < 1 else f"{s:.1f} s" if s < 10 else f"{s:,.0f} s" if s < 7200 else f"{s / 3600:.1f} h"


def power(p: float) -> str:
    """The relation and p, in three digits or as a power of ten, in HTML."""
    if p >= 1e-3:
        return f"= {p:.3f}"
    mantissa, exponent = f"{p:.1e}".split("e")
    return f"= {mantissa} · 10<sup>{signed(int(exponent), 0)}</sup>" if p else "&lt; 10<sup>\u2212300</sup>"


CSS = """
:root{--bg:#f5f5f2;--card:#fff;--ink:#1a1c20;--mute:#636871;--line:#e1e2e0;--before:#8d939d;--fit:#b3720f;--after:#1f5fd0;
--run0:#1f5fd0;--run1:#c2410c;--run2:#15803d;--run3:#7e22ce;--run4:#b3720f;--run5:#0e7490;--run6:#be185d;--run7:#4d7c0f;
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
.run0{--c:var(--run0)}.run1{--c:var(--run1)}.run2{--c:var(--run2)}.run3{--c:var(--run3)}.run4{--c:var(--run4)}.run5{--c:var(--run5)}.run6{--c:var(--run6)}.run7{--c:var(--run7)}
.ink{--c:var(--ink)}.before{--c:var(--before)}.fit{--c:var(--fit)}.after{--c:var(--after)}tr.after th{font-weight:600}
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
.wide{overflow-x:auto}.wide td{white-space:nowrap;font-size:14px}
@media(max-width:640px){main{padding:20px 14px 48px}main,.two{gap:14px}section,figure,details{padding:16px}
svg text{font-size:11px!important}.result thead,.result td:empty{display:none}
.result tr{display:grid;grid-template-columns:1fr auto;padding:12px 0;border-top:1px solid var(--line)}
.result tr:first-child{border:0}.result th,.result td{border:0;padding:0;font-size:14px}
.result .track,.result [data-name]{grid-column:1/3;width:auto;padding:0}
[data-name]::before{content:attr(data-name) " ";color:var(--mute)}}
"""
