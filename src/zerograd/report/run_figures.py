"""The figures of a run's page. A figure is None if the run has no data for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zerograd.machine.format import Measure, count
from zerograd.report.figures import COLOURS, Chart, axes, chart, finite
from zerograd.report.predictions import WHEN, tenths

Row = Mapping[str, Any]

MAX_POINTS = 2000
"""The most points of a curve; longer curves have every second or third logged step."""


def loss(history: Sequence[Row]) -> Chart | None:
    """The loss of logged steps, and its running mean."""
    time, value = finite(history, "seconds", "loss")
    if not len(time):
        return None
    window = max(1, min(51, len(value) // 10 * 2 + 1))
    ones = np.ones(window)
    smooth = np.convolve(value, ones, "same") / np.convolve(np.ones_like(value), ones, "same")
    every = slice(None, None, -(-len(value) // MAX_POINTS))
    figure, plot = axes("training time, s", 1.02 * max(row["seconds"] for row in history))
    marker = "o" if len(time) == 1 else ""
    plot.plot(time[every], value[every], color=COLOURS["before"], linewidth=0.8, alpha=0.6, marker=marker)
    plot.plot(time[every], smooth[every], color=COLOURS["after"], linewidth=1.8)
    return chart(figure, "Training loss", {"before": "logged step", "after": f"mean of {count(window, 'logged step')}"})


def dev(result: Row, history: Sequence[Row], measure: Measure) -> Chart | None:
    """The metric on the dev split beside test results before training; the loss if no metric was logged."""
    metric, logged, scale = result["metric"], "dev_value", measure.scale
    if any("dev_reward" in row for row in history):
        logged = "dev_reward"
    elif not any(logged in row for row in history):
        metric, logged, scale = "loss", "dev_loss", 1
    time, value = finite(history, "seconds", logged)
    if not len(time):
        return None
    figure, plot = axes("training time, s", 1.02 * max(row["seconds"] for row in history))
    key = {"after": "tuned (dev)"}
    for colour, name, field in (("before", "zero-shot", "value_before"), ("fit", "fitted offsets", "value_calibrated")):
        if metric != "loss" and result.get(field) is not None:
            plot.axhline(scale * result[field], color=COLOURS[colour], linewidth=1.4, linestyle=(0, (4, 2)))
            key[f"{colour} dash"] = f"{name} (test)"
    plot.plot(time, scale * value, color=COLOURS["after"], linewidth=1.8, marker="o", markersize=3.5)
    plot.margins(y=0.12)
    return chart(figure, f"Dev {metric}" + (", %" if scale == 100 else ""), key)


def margins(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> Chart:
    """Histograms of the margins of test rows."""
    figure, plot = axes("margin")
    bins = np.histogram_bin_edges(np.concatenate([before, after]), bins=40).tolist()
    plot.hist(before, bins=bins, color=COLOURS["before"], alpha=0.45)
    plot.hist(after, bins=bins, color=COLOURS["after"], alpha=0.2)
    plot.hist(after, bins=bins, color=COLOURS["after"], histtype="step", linewidth=1.6)
    plot.axvline(0, color=COLOURS["ink"], linewidth=0.9, linestyle=(0, (2, 2)))
    return chart(figure, "Margins of the test rows", {"before": "before", "after": "after"})


def calibration(predictions: Sequence[Row]) -> Chart | None:
    """The share of right rows by the probability of the chosen option, with 95 % intervals."""
    if not predictions or "probability_after" not in predictions[0]:
        return None
    figure, plot = axes("probability of the chosen option, %")
    plot.plot([0, 100], [0, 100], color=COLOURS["mute"], linewidth=0.9, linestyle=(0, (2, 2)))
    for when in WHEN:
        parts = tenths(predictions, when)
        xs, ys = [100 * p for p, *_ in parts], [100 * r for _, r, _ in parts]
        plot.plot(xs, ys, color=COLOURS[when], marker="o", markersize=3.5)
        for probability, right, rows in parts:
            half = 100 * 1.96 * (right * (1 - right) / rows) ** 0.5
            plot.plot([100 * probability] * 2, [100 * right - half, 100 * right + half], color=COLOURS[when], linewidth=1)
    plot.set_xlim(100 * min(row[f"probability_{when}"] for row in predictions for when in WHEN) - 2, 102)
    return chart(figure, "Right, % of rows, by probability", {"before": "before", "after": "after"})
