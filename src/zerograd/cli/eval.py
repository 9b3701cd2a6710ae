"""zerograd eval: what a model, or a run's tuned model, is worth on a task."""

from __future__ import annotations

import argparse
import json
from typing import Any

from zerograd.cli import flags, shown
from zerograd.cli.bar import Bar
from zerograd.machine.quiet import quiet
from zerograd.tune.settings import TaskSettings


def add(verbs: Any) -> None:
    parser = verbs.add_parser("eval", help="evaluate a model, or a finished run", description=__doc__)
    parser.add_argument(
        "run_folder", metavar="RUN", nargs="?", default="", help="a finished run's folder, or its shipped file; or give --model"
    )
    flags.add(parser, TaskSettings)
    parser.add_argument("--base", metavar="MODEL", default="", help="what a shipped run began from (default: where it was then)")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test", help="which rows (default: test)")
    parser.add_argument("--calibrate", action="store_true", help="choose options by how much the row's content raises their scores")
    parser.add_argument("--json", action="store_true", help="make the last line of standard output one JSON object")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    settings = flags.read(TaskSettings, parsed)
    if parsed.show_config:
        print(flags.shown(settings))
        return 0
    name = settings.model if settings.model.endswith(".zg") else parsed.run_folder
    if name:
        own = ("model", "head", "task", "text", "label", "template", "options", "chat", "max_tokens", "new_tokens")
        fixed = [field for field in own if field in vars(parsed) and vars(parsed)[field] != name]
        if fixed:
            raise ValueError(f"{fixed[0]} is the run's own; leave it out, or leave RUN out")
    from rich.console import Console

    from zerograd.runs.evaluate import evaluate
    from zerograd.runs.ship import open_run_or_file

    quiet()
    console = Console(stderr=parsed.json)
    with Bar(console) as bar:
        finished = open_run_or_file(name, parsed.base) if name else None
        result = evaluate(settings, finished, parsed.split, parsed.calibrate, bar.show)
    metric = result["metric"]
    value = f"{shown.title(metric)} {shown.value(metric, result['value'], result['ci'])}, loss {result['loss']:.3f}"
    console.print(f"{result['model']} on {result['rows']:,} {result['split']} rows of {result['task']}: {value}", highlight=False)
    if parsed.json:
        print(json.dumps(result))
    return 0
