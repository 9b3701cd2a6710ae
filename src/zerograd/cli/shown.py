"""How values are written on the screen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from zerograd.text.metrics import METRICS

BLOCKS = "▁▂▃▄▅▆▇█"


def quiet() -> None:
    """Keep transformers' own bars and warnings off the screen, which is for ours."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", module=r"peft\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def title(metric: str) -> str:
    """A metric's name as a heading."""
    return "% right" if metric == "accuracy" else f"{metric}, %" if metric in METRICS else metric


def value(metric: str, number: float, bounds: Sequence[float] | None = None) -> str:
    """A value with its interval: in percent where the metric is a share."""
    scale, digits = (100, ".1f") if metric in METRICS else (1, ".4g")
    interval = f" ({scale * bounds[0]:{digits}}, {scale * bounds[1]:{digits}})" if bounds else ""
    return f"{scale * number:{digits}}{interval}"


def gain(metric: str, number: float, bounds: Sequence[float]) -> str:
    """A difference with its interval."""
    scale, digits = (100, "+.1f") if metric in METRICS else (1, "+.3g")
    return f"{scale * number:{digits}} ({scale * bounds[0]:{digits}}, {scale * bounds[1]:{digits}})"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """A curve of blocks: the means of at most `width` equal parts of the values."""
    count = min(width, len(values))
    edges = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(BLOCKS[round((mean - low) / (high - low) * (len(BLOCKS) - 1)) if high > low else 0] for mean in means)
