"""zerograd tune: fine-tune a language model on a task with forward passes only."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from zerograd.cli import flags
from zerograd.train.settings import TuneSettings


def add(verbs: Any) -> None:
    parser = verbs.add_parser("tune", help="fine-tune a language model with forward passes only", description=__doc__)
    flags.add(parser, TuneSettings)
    parser.add_argument("--json", action="store_true", help="make the last line of standard output one JSON object")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    settings = flags.read(TuneSettings, parsed)
    from rich.console import Console
    from transformers.utils import logging

    from zerograd.train.tune import Tuning

    logging.disable_progress_bar()  # the screen is for our own progress
    logging.set_verbosity_error()

    console = Console(stderr=parsed.json)
    with Bar(console) as bar:
        tuning = Tuning(settings, bar.show)
        result = tuning.run()
    console.print(table(result))
    console.print(summary(result), highlight=False)
    if parsed.json:
        print(json.dumps(result))
    return 0


class Bar:
    """A live line: the phase and how far it is, and while training loss, dev accuracy, speed and the time left."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (TextColumn("{task.description:16}"), BarColumn(12), TaskProgressColumn(), TextColumn("{task.fields[state]}"))
        self._progress = Progress(*columns, console=console, refresh_per_second=4)
        self._phase = ""
        self._task: Any = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None and self._task is not None:
            self._progress.update(self._task, completed=1.0)
        self._progress.stop()

    def show(self, progress: Any) -> None:
        if progress.phase != self._phase:
            if self._task is not None:
                self._progress.update(self._task, completed=1.0)
            self._phase = progress.phase
            self._task = self._progress.add_task(progress.phase, total=1.0, state="")
        self._progress.update(self._task, completed=progress.done, state=_state(progress))


def _state(progress: Any) -> str:
    if not progress.step:
        return ""
    dev = "" if math.isnan(progress.dev_accuracy) else f" dev {100 * progress.dev_accuracy:.1f} %"
    left = (
        "" if math.isnan(progress.seconds_left) else f" ETA {int(progress.seconds_left // 60)}:{int(progress.seconds_left % 60):02}"
    )
    pace = f"{progress.examples_per_second:.0f} ex/s {progress.seconds_per_step:.2f} s/step"
    return f"loss {progress.loss:.3f}{dev} {pace}{left}"


def table(result: dict[str, Any]) -> Any:
    """The four accuracies with their 95 % intervals, and the paired gains."""
    from rich import box
    from rich.table import Table

    title = f"{result['task']}: % right of {result['test_rows']:,} test rows (95 % interval), paired gains"
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    made.add_column("", no_wrap=True)
    for heading in ("accuracy", "over zero-shot", "over threshold"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_row("majority", _percent(result["accuracy_majority"], None), "", "")
    made.add_row("zero-shot", _percent(result["accuracy_before"], result["ci_before"]), "", "")
    made.add_row("threshold-fitted", _percent(result["accuracy_calibrated"], result["ci_calibrated"]), "", "")
    gains = (
        _gain(result["accuracy_after"] - result[f"accuracy_{name}"], result[interval])
        for name, interval in (("before", "ci_gain"), ("calibrated", "ci_gain_calibrated"))
    )
    made.add_row("tuned", _percent(result["accuracy_after"], result["ci_after"]), *gains, style="bold")
    return made


def summary(result: dict[str, Any]) -> str:
    """Time, forwards, memory, and where everything is."""
    mb = 1 / 2**20
    over = result["peak_bytes"] - result["inference_peak_bytes"]
    skipped = f", {result['skipped_steps']} skipped (loss not finite)" if result["skipped_steps"] else ""
    lines = [
        f"{result['steps']} steps{skipped}, {result['forwards']} forward passes, no backward pass: {result['seconds']:.0f} s of "
        f"training, {result['seconds_per_step']:.2f} s a step, {result['seconds_total']:.0f} s in all",
        f"peak memory {result['peak_bytes'] * mb:.0f} MB training, {result['inference_peak_bytes'] * mb:.0f} MB evaluating as many "
        f"rows ({100 * over / result['weight_bytes']:+.1f} % of the weights)",
        f"report {result['run']}/report.html, model {result['run']}/model",
    ]
    if result["stopped"]:
        lines.insert(0, result["stopped"])
    return "\n".join(lines)


def _percent(value: float, bounds: list[float] | None) -> str:
    interval = "" if bounds is None else f" ({100 * bounds[0]:.1f}, {100 * bounds[1]:.1f})"
    return f"{100 * value:.1f}{interval}"


def _gain(value: float, bounds: list[float]) -> str:
    return f"{100 * value:+.1f} ({100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f})"
