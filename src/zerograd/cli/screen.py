"""Text for the screen: values of a metric, and curves of block characters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from zerograd.machine.format import Measure
from zerograd.text.metrics import is_share

BLOCKS = "▁▂▃▄▅▆▇█"


def title(metric: str) -> str:
    """A metric's name as a heading."""
    return "% right" if metric == "accuracy" else f"{metric}, %" if is_share(metric) else metric


def value(metric: str, number: float, ends: Sequence[float] | None = None) -> str:
    """A value, with its interval in brackets if there is one."""
    measure = Measure(is_share(metric))
    return measure.value(number) + (f" ({measure.interval(ends)})" if ends else "")


def gain(metric: str, number: float, ends: Sequence[float]) -> str:
    """A gain with its interval."""
    measure = Measure(is_share(metric))
    return f"{measure.gain(number)} ({measure.gain_interval(ends)})"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """A curve of block characters: the means of at most `width` equal parts of the values."""
    count = min(width, len(values))
    edges = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(BLOCKS[round((mean - low) / (high - low) * (len(BLOCKS) - 1)) if high > low else 0] for mean in means)
