"""zerograd tune: fine-tune a language model on a task with forward passes only."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from zerograd.cli import flags, shown
from zerograd.cli.bar import Bar
from zerograd.machine.format import clock, mebibytes, minutes, passes, percent, seconds
from zerograd.machine.quiet import quiet
from zerograd.tune.settings import TuneSettings


def add(verbs: Any) -> None:
    parser = verbs.add_parser("tune", help="fine-tune a language model with forward passes only", description=__doc__)
    flags.add(parser, TuneSettings)
    parser.add_argument("--json", action="store_true", help="make the last line of standard output one JSON object")
    parser.add_argument("--resume", metavar="RUN", default="", help="go on with a run that was cut off, or has more to do now")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what a run would do and take, and end")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    from zerograd.tune.resume import resumed_settings

    if parsed.resume and parsed.config:
        raise ValueError("config is the run's own with --resume; leave it out")
    more = flags.given(TuneSettings, parsed)
    settings = resumed_settings(Path(parsed.resume), more) if parsed.resume else flags.read(TuneSettings, parsed)
    if parsed.show_config:
        print(flags.shown(settings.resolved()))
        return 0
    from rich.console import Console

    from zerograd.tune import rehearse, tune

    quiet()
    console = Console(stderr=parsed.json)
    with Bar(console, _state) as bar:
        act = rehearse if parsed.dry_run else tune
        result = act(settings, bar.show, bar.say, resume=bool(parsed.resume))
    if parsed.dry_run:
        console.print(estimate(result), highlight=False)
        return 0
    console.print(table(result))
    console.print(summary(result), highlight=False)
    if parsed.json:
        print(json.dumps(result))
    return 0


def _state(progress: Any) -> str:
    if not progress.step:
        return ""
    dev = "" if math.isnan(progress.dev) else f" {progress.dev_name} {shown.value(progress.dev_name.split()[-1], progress.dev)}"
    left = "" if math.isnan(progress.seconds_left) else f" ETA {clock(progress.seconds_left)}"
    pace = f"{progress.examples_per_second:.0f} ex/s {seconds(progress.seconds_per_step, 2)}/step"
    return f"loss {progress.loss:.3f}{dev} {pace}{left}"


def table(result: dict[str, Any]) -> Any:
    """The values of the run with their 95 % intervals, and what tuning gains over each, paired."""
    from rich import box
    from rich.table import Table

    metric = result["metric"]
    title = f"{result['task']}: {shown.title(metric)} of {result['test_rows']:,} test rows (95 % interval)"
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    made.add_column("", no_wrap=True)
    for heading in (metric, "tuned gains"):
        made.add_column(heading, justify="right", no_wrap=True)
    names = {"majority": "majority", "before": "zero-shot", "shots": "in-context", "calibrated": "threshold-fitted"}
    for name, label in names.items():
        if f"value_{name}" in result:
            value = result[f"value_{name}"]
            interval = result.get("ci_gain" if name == "before" else f"ci_gain_{name}")
            gain = shown.gain(metric, result["value_after"] - value, interval) if interval else ""
            made.add_row(label, shown.value(metric, value, result.get(f"ci_{name}")), gain)
    made.add_row("tuned", shown.value(metric, result["value_after"], result["ci_after"]), "", style="bold")
    return made


def summary(result: dict[str, Any]) -> str:
    """Time, forwards, memory, and where everything is."""
    over = result["peak_bytes"] - result["inference_peak_bytes"]
    spent = passes(result["forwards"], result.get("backward_passes", 0))
    skipped = f", {result['skipped_steps']} skipped (loss not finite)" if result["skipped_steps"] else ""
    lines = [
        f"{result['steps']} steps{skipped}, {spent}: {seconds(result['seconds'])} of "
        f"training, {seconds(result['seconds_per_step'], 2)} a step, {seconds(result['seconds_total'])} in all",
        f"peak memory {mebibytes(result['peak_bytes'])} training, {mebibytes(result['inference_peak_bytes'])} evaluating as many "
        f"rows ({percent(over / result['weight_bytes'], sign='+')} of the weights)",
        f"report {result['run']}/report.html, model {result['run']}/model",
    ]
    if result.get("flat_steps"):
        flat = f"{result['flat_steps']} of {result['steps']} steps taught nothing, their branches scoring the same"
        lines.insert(1, f"{flat}; a larger --eps or --batch-size helps")
    if result["stopped"]:
        lines.insert(0, result["stopped"])
    return "\n".join(lines)


def estimate(found: dict[str, Any]) -> str:
    """What a run would take, and write."""
    return "\n".join(
        [
            f"trains {found['trained_parameters']:,} of {found['parameters']:,} parameters on {found['rows']['train']:,} rows, "
            f"chooses on {found['rows']['dev']:,}, reports on {found['rows']['test']:,}",
            f"a step takes about {seconds(found['seconds_per_step'], 2)}, so about {found['steps']:,} steps in "
            f"{minutes(found['seconds'])}; evaluations add about {found['evaluation_seconds'] / 60:.1f}",
            f"peak memory about {mebibytes(found['peak_bytes'])}, of which weights {mebibytes(found['weight_bytes'])}",
            f"would write {', '.join(found['files'])} to {found['run']}, about {mebibytes(found['disk_bytes'])}",
        ]
    )
