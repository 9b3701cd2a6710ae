"""zerograd eval: evaluate a model, or the tuned model of a finished run, on a task."""

from __future__ import annotations

import argparse
import json
from typing import Any

from zerograd.cli import flags, screen
from zerograd.cli.bar import Bar
from zerograd.machine.quiet import quiet
from zerograd.tune.settings import TaskSettings


def add(verbs: Any) -> None:
    parser = verbs.add_parser("eval", help="evaluate a model, or a finished run", description=__doc__)
    parser.add_argument(
        "run_folder", metavar="RUN", nargs="?", default="", help="a finished run's folder, or its shipped file; or give --model"
    )
    flags.add(parser, TaskSettings)
    parser.add_argument("--base", metavar="MODEL", default="", help="the base model of a shipped run (default: as in the run)")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test", help="which rows (default: test)")
    parser.add_argument("--calibrate", action="store_true", help="compare each option's score with its score for an empty text")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, the last line of standard output")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    settings = flags.read(TaskSettings, parsed)
    if parsed.show_config:
        print(flags.to_yaml(settings))
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
    value = f"{screen.title(metric)} {screen.value(metric, result['value'], result['ci'])}, loss {result['loss']:.3f}"
    console.print(f"{result['model']} on {result['rows']:,} {result['split']} rows of {result['task']}: {value}", highlight=False)
    if parsed.json:
        print(json.dumps(result))
    return 0
