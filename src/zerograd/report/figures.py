"""Figures as inline SVG. Their colours are variables of the stylesheet, so figures follow the reader's light or dark
mode.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Row = Mapping[str, Any]

RUNS = tuple(f"run{number}" for number in range(8))
"""Colours of compared runs."""

_NAMES = ("ink", "mute", "line", "before", "fit", "after", *RUNS)

COLOURS = {name: f"#{number:02x}{number:02x}{number:02x}" for number, name in enumerate(_NAMES, 1)}
"""Placeholder colours for drawing, by the name of the stylesheet's variable that replaces each."""

_DRAWING: Any = {"svg.fonttype": "none", "svg.hashsalt": "zerograd", "font.size": 9.0, "axes.linewidth": 0.7}


@dataclass(frozen=True)
class Chart:
    """A figure of a page.

    key: the name of each colour's curve; a colour with the suffix " dash" is a dashed line. box: the SVG's viewBox.
    drawing: the SVG's content.
    """

    title: str
    key: Mapping[str, str]
    box: str
    drawing: Markup


def axes(label: str, right: float = 0.0) -> tuple[Figure, Axes]:
    """An empty figure. label: of the x axis. right: the end of the x axis; 0 for the end of the data."""
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


def chart(figure: Figure, title: str, key: Mapping[str, str]) -> Chart:
    """The figure as SVG, with colour variables, without prolog, fixed size and ids."""
    text = io.StringIO()
    with style.context(["default", _DRAWING]):
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    tag, inside = text.getvalue().partition("<svg")[2].split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', tag)
    assert box is not None
    inside = re.sub(r'<g id="[^"]*"', "<g", inside.rpartition("</svg>")[0])
    for name, colour in COLOURS.items():
        inside = inside.replace(colour, f"var(--{name})")
    return Chart(title, key, box[1], Markup(inside))  # matplotlib escapes text


def finite(rows: Iterable[Row], x: str, y: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The pairs of two fields where both are present and finite, (2, n)."""
    pairs = ((row.get(x), row.get(y)) for row in rows)
    return np.array([pair for pair in pairs if all(v is not None and math.isfinite(v) for v in pair)], float).reshape(-1, 2).T
