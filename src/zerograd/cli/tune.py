"""zerograd tune: fine-tune a language model on a task with forward passes only."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from zerograd.cli import flags, screen
from zerograd.cli.bar import Bar
from zerograd.machine.format import clock, mebibytes, minutes, passes, percent, seconds
from zerograd.machine.quiet import quiet
from zerograd.tune.settings import TuneSettings


def add(verbs: Any) -> None:
    parser = verbs.add_parser("tune", help="fine-tune a language model with forward passes only", description=__doc__)
    flags.add(parser, TuneSettings)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, the last line of standard output")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        default="",
        help="continue an interrupted run, or a finished one with more --steps, --minutes or --evaluations",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print an estimate of time, memory and disk, and exit"
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    from zerograd.tune.resume import resumed_settings

    if parsed.resume and parsed.config:
        raise ValueError("config is the run's own with --resume; leave it out")
    more = flags.given(TuneSettings, parsed)
    settings = resumed_settings(Path(parsed.resume), more) if parsed.resume else flags.read(TuneSettings, parsed)
    if parsed.show_config:
        print(flags.to_yaml(settings.resolved()))
        return 0
    from rich.console import Console

    from zerograd.tune import rehearse, tune

    quiet()
    console = Console(stderr=parsed.json)
    with Bar(console, _state) as bar:
        work = rehearse if parsed.dry_run else tune
        result = work(settings, bar.show, bar.say, resume=bool(parsed.resume))
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
    dev = "" if math.isnan(progress.dev) else f" {progress.dev_name} {screen.value(progress.dev_name.split()[-1], progress.dev)}"
    left = "" if math.isnan(progress.seconds_left) else f" ETA {clock(progress.seconds_left)}"
    pace = f"{progress.examples_per_second:.0f} ex/s {seconds(progress.seconds_per_step, 2)}/step"
    return f"loss {progress.loss:.3f}{dev} {pace}{left}"


def table(result: dict[str, Any]) -> Any:
    """The results with 95 % intervals, and the paired gain of the tuned model over each."""
    from rich import box
    from rich.table import Table

    metric = result["metric"]
    title = f"{result['task']}: {screen.title(metric)} of {result['test_rows']:,} test rows (95 % interval)"
    values = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    values.add_column("", no_wrap=True)
    for heading in (metric, "tuned gains"):
        values.add_column(heading, justify="right", no_wrap=True)
    names = {"majority": "majority", "before": "zero-shot", "shots": "in-context", "calibrated": "threshold-fitted"}
    for name, label in names.items():
        if f"value_{name}" in result:
            value = result[f"value_{name}"]
            interval = result.get("ci_gain" if name == "before" else f"ci_gain_{name}")
            gain = screen.gain(metric, result["value_after"] - value, interval) if interval else ""
            values.add_row(label, screen.value(metric, value, result.get(f"ci_{name}")), gain)
    values.add_row("tuned", screen.value(metric, result["value_after"], result["ci_after"]), "", style="bold")
    return values


def summary(result: dict[str, Any]) -> str:
    """Steps, time and memory of the run, and the paths of its report and model."""
    over = result["peak_bytes"] - result["inference_peak_bytes"]
    spent = passes(result["forwards"], result.get("backward_passes", 0))
    skipped = f", {result['skipped_steps']} skipped (loss not finite)" if result["skipped_steps"] else ""
    lines = [
        f"{result['steps']} steps{skipped}, {spent}; training {seconds(result['seconds'])}, "
        f"{seconds(result['seconds_per_step'], 2)} per step; total {seconds(result['seconds_total'])}",
        f"peak memory: training {mebibytes(result['peak_bytes'])}, inference {mebibytes(result['inference_peak_bytes'])} "
        f"(difference {percent(over / result['weight_bytes'], sign='+')} of the weights)",
        f"report: {result['run']}/report.html, model: {result['run']}/model",
    ]
    if result.get("flat_steps"):
        flat = f"{result['flat_steps']} of {result['steps']} steps had no signal: all branches had the same score"
        lines.insert(1, f"{flat}; a larger --eps or --batch-size helps")
    if "rewards" in result:
        lines[1:1] = _of_rewards(result)
    if result["stopped"]:
        lines.insert(0, result["stopped"])
    return "\n".join(lines)


def _told(reward: dict[str, Any]) -> list[str]:
    """How much a reward tells, in lines."""
    mean, spread = (f"{reward[name]:,.3f}" for name in ("mean", "spread"))
    seen = f"{reward['answers']:,} answers: reward {mean} on average, the spread of a pair's difference {spread}"
    flat = f"{percent(reward['flat'])} of the prompts had answers that all score the same"
    if math.isfinite(reward["needed"]):
        needs = (
            f"a step needs about {reward['needed']:,.0f} answers for a signal as large as its noise, and has {reward['a_step']:,}"
        )
    else:
        needs = f"no signal was seen above the noise: a step has {reward['a_step']:,} answers, and may need many more"
    return [f"{seen}; {flat}", f"{needs}; --batch-size and --method-options directions=N set how many"]


def _of_rewards(result: dict[str, Any]) -> list[str]:
    """What a run on rewards has learnt and forgotten, in lines."""
    lines = []
    for name, found in result["rewards"].items():
        if found["rows"]:
            low, high = found["ci_gain"]
            lines.append(f"{name}: {found['before']:.3f} -> {found['after']:.3f} (gain {low:+.3f} to {high:+.3f})")
    if "success_before" in result:
        low, high = (percent(end, sign="+") for end in result["ci_success"])
        before, after = percent(result["success_before"]), percent(result["success_after"])
        lines.append(f"right answers: {before} -> {after} (gain {low} to {high})")
    tokens = result["tokens"]
    lines.append(
        f"{result['generations']:,} answers in training; an answer has {tokens['before']:.0f} -> {tokens['after']:.0f} tokens"
    )
    if "kl" in result:
        lines.append(
            f"beside the task: KL to the base {result['kl']:.3f} a token, {result['off_task_rows']} rows of sentiment-movies "
            f"{percent(result['off_task_before'])} -> {percent(result['off_task_after'])} right"
        )
    return lines


def estimate(expected: dict[str, Any]) -> str:
    """The estimate of a dry run: time, memory and disk, and how much a reward tells."""
    return "\n".join(
        (_told(expected["reward"]) if "reward" in expected else [])
        + [
            f"trained parameters: {expected['trained_parameters']:,} of {expected['parameters']:,}",
            f"rows: train {expected['rows']['train']:,}, dev {expected['rows']['dev']:,}, test {expected['rows']['test']:,}",
            f"time: about {seconds(expected['seconds_per_step'], 2)} per step, {expected['steps']:,} steps in "
            f"{minutes(expected['seconds'])}, evaluations {minutes(expected['evaluation_seconds'])} more",
            f"peak memory: about {mebibytes(expected['peak_bytes'])}, including {mebibytes(expected['weight_bytes'])} of weights",
            f"disk: about {mebibytes(expected['disk_bytes'])} in {expected['run']}: {', '.join(expected['files'])}",
        ]
    )
