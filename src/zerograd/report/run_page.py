"""A run's report: the result, its curves, its memory and its predictions on one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zerograd.machine import format as text
from zerograd.machine.format import Measure
from zerograd.report import document, predictions, run_figures

Row = Mapping[str, Any]

VERDICTS = {1: ("good", "Clear gain"), 0: ("even", "No clear change"), -1: ("bad", "Clear loss")}
"""The verdict by the sign of a gain whose interval excludes 0; 0 if it includes 0."""

MEMORY = {"inference_peak_bytes": "Inference peak", "peak_bytes": "Training peak", "weight_bytes": "Weights"}

RESULTS = (
    ("before", "Majority class", "value_majority", "", ""),
    ("before", "Zero-shot", "value_before", "ci_before", "ci_gain"),
    ("before", "In context", "value_shots", "ci_shots", "ci_gain_shots"),
    ("fit", "Zero-shot, offsets fitted on training rows", "value_calibrated", "ci_calibrated", "ci_gain_calibrated"),
    ("after", "Tuned", "value_after", "ci_after", ""),
)
"""Rows of the results table: colour, name, and fields of the value, its interval, and the interval of the gain over it.
"""


def write(path: Path, result: Row, history: Sequence[Row], rows: Sequence[Row]) -> None:
    """Write the report of a finished run atomically.

    result: the run's numbers, settings and versions, and `is_share`, whether its metric is a share; times in seconds.
    history: the logged steps, may be empty. rows: the test rows with the options chosen before and after tuning.
    Raises KeyError if a needed number is missing; the baseline of fitted offsets and the byte counts may be None.
    """
    measure = Measure(result["is_share"])
    spread = predictions.margins(rows)
    document.write(
        path,
        "run.html",
        title=f"{result['task']}, {result['model']}",
        result=result,
        measure=measure,
        spent=_spent(result),
        verdicts=list(_verdicts(result)),
        facts=_facts(result),
        table=_results(result, measure),
        rewards=_rewards(result),
        loss=run_figures.loss(history),
        dev=run_figures.dev(result, history, measure),
        memory={field: result[field] for field in MEMORY if result.get(field)},
        memory_names=MEMORY,
        first_row=result.get("first_row"),
        has_rows=bool(rows),
        has_options=not rows or "label" in rows[0],
        confusion=predictions.confusion(rows),
        changes=predictions.changes(rows),
        examples=predictions.examples(rows),
        answers=predictions.answers(rows),
        fell=predictions.FELL,
        margins=spread,
        margins_figure=spread and run_figures.margins(spread["before"], spread["after"]),
        calibration=run_figures.calibration(rows),
        calibration_error=predictions.calibration_error,
        rows=rows,
        noise=_noise(result, history),
        tables={title: list(_flat(result[title])) for title in ("settings", "versions")},
    )


def _spent(result: Row) -> str:
    """Test rows, time, steps and passes of the run, in words."""
    rows = f"on {text.count(result['test_rows'], 'test row')} in {text.duration(result['seconds'])}"
    return f"{rows}, {text.count(result['steps'], 'step')}, {text.passes(result['forwards'], result.get('backward_passes', 0))}"


def _verdicts(result: Row) -> Iterator[dict[str, Any]]:
    """Verdicts of the tuned model against the untrained one, and against that one with fitted offsets."""
    for name, value, interval in (
        ("zero-shot", result["value_before"], result["ci_gain"]),
        ("zero-shot with fitted offsets", result.get("value_calibrated"), result.get("ci_gain_calibrated")),
    ):
        if interval:
            kind, word = VERDICTS[(interval[0] > 0) - (interval[1] < 0)]
            yield {"kind": kind, "word": word, "over": name, "gain": result["value_after"] - value, "interval": interval}


def _facts(result: Row) -> dict[str, Any]:
    return {
        "Model": result["model"],
        "Task": result["task"],
        "Metric": result["metric"],
        "Method": result["method"],
        "Scheme": result["scheme"],
        "Seed": result["seed"],
        "Time per step": text.duration(result["seconds_per_step"]),
        "Total time": text.duration(result["seconds_total"]),
        "Skipped steps": f"{result['skipped_steps']:,}",
        "Run": result["run"],
    }


def _results(result: Row, measure: Measure) -> dict[str, Any]:
    """The results table. Intervals are drawn on a track from `low` to `high`, at places in percent of its width."""
    present = [row for row in RESULTS if result.get(row[2]) is not None]
    ends = [end for row in present for end in result.get(row[3]) or ()]
    room = 0.1 * (max(ends) - min(ends)) or 0.02
    low, high = min(ends) - room, max(ends) + room

    def place(value: float) -> float:
        return float(100 * np.clip((value - low) / (high - low), 0, 1))

    rows = []
    for colour, name, field, of_value, of_gain in present:
        value, interval, gain = result[field], result.get(of_value), result.get(of_gain)
        row = {"colour": colour, "name": name, "value": value, "interval": interval, "gain": None}
        if interval:
            left, right = map(place, interval)
            row |= {"left": left, "width": right - left, "dot": place(value)}
        if gain:
            row |= {"gain": result["value_after"] - value, "gain_interval": gain}
        rows.append(row)
    return {"low": low, "high": high, "rows": rows, "has_offsets": result.get("value_calibrated") is not None}


def _rewards(result: Row) -> dict[str, Any] | None:
    """What a run on rewards has learnt and forgotten, as a table and a note; None for other runs."""
    if "rewards" not in result:
        return None
    share, plain = Measure(True), Measure(False)
    compared = {name: (found, plain) for name, found in result["rewards"].items()} | {
        "Tokens of an answer": (result["tokens"], plain)
    }
    if "success_before" in result:
        right = {"before": result["success_before"], "after": result["success_after"], "ci_gain": result["ci_success"], "rows": 1}
        compared = {"Right answers": (right, share)} | compared
    if "off_task_before" in result:
        other = {"before": result["off_task_before"], "after": result["off_task_after"], "ci_gain": None, "rows": 1}
        compared["Right on sentiment-movies"] = (other, share)
    rows = [
        {
            "name": name,
            "before": measure.value(found["before"]),
            "after": measure.value(found["after"]),
            "gain": measure.gain_interval(found["ci_gain"]) if found["ci_gain"] else "",
        }
        for name, (found, measure) in compared.items()
        if found["rows"]
    ]
    note = f"{text.count(result['generations'], 'answer')} in training, {text.count(result['generated_tokens'], 'token')}."
    if "kl" in result:
        note += (
            f" KL to the base: {result['kl']:.3f} nats a token, on texts beside the task ({result['off_task_rows']} rows there)."
        )
    return {"rows": rows, "note": note}


def _noise(result: Row, history: Sequence[Row]) -> dict[str, Any] | None:
    """The noise scale of the batch. None if it was not measured."""
    if not any("noise_scale" in row for row in history):
        return None
    low, high = result.get("noise_scale_range") or (None, None)
    return {"scale": result.get("noise_scale"), "low": low, "high": high, "ratio": result.get("signal_to_noise")}


def _flat(tree: Row, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
