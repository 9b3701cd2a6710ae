"""zerograd plan: list the methods that fit in a machine's memory, with seconds per step; no weight is loaded."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from typing import Any

from zerograd.cli import flags
from zerograd.planner.settings import PlanSettings


def add(verbs: Any) -> None:
    parser = verbs.add_parser("plan", help="list what fits in this machine's memory, or another's", description=__doc__)
    parser.add_argument(
        "planned_model", metavar="MODEL", nargs="?", default="", help="a model, or a size such as 8B; the same as --model"
    )
    flags.add(parser, PlanSettings)
    parser.add_argument("--json", action="store_true", help="print one JSON object: machine, model, rows, basis, advice")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    if parsed.planned_model:
        if getattr(parsed, "model", parsed.planned_model) != parsed.planned_model:
            raise ValueError(f"model is {parsed.model!r}, and MODEL {parsed.planned_model!r}; give one of them")
        parsed.model = parsed.planned_model
    settings = flags.read(PlanSettings, parsed)
    if parsed.show_config:
        print(flags.to_yaml(settings))
        return 0
    from zerograd.machine.quiet import quiet
    from zerograd.planner import make_plan

    quiet()
    plan = make_plan(settings, lambda line: print(line, file=sys.stderr))
    if parsed.json:
        print(json.dumps(plan.as_json()))
        return 0
    from rich.console import Console

    console = Console()
    console.print(plan_table(plan))
    for line in (f"... stands for {_common_start(plan)}", *plan.basis, f"recommendation: {plan.advice}"):
        console.print(line, highlight=False, markup=False)
    return 0


def plan_table(plan: Any) -> Any:
    """The rows of a plan as a table."""
    from rich import box
    from rich.table import Table

    from zerograd.machine.format import quantity

    title = f"{plan.settings.model or 'a model'}: {plan.shape.parameters:,} parameters\n{plan.machine}"
    start = _common_start(plan)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for heading in ("memory", "fits", "s/step"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("command", overflow="fold")
    for row in plan.rows:
        step_seconds = "?" if row.seconds is None else f"{row.seconds:.2g}" if row.seconds < 100 else f"{row.seconds:,.0f}"
        fits = "yes" if plan.fits(row) else "no"
        table.add_row(row.name, quantity(row.memory, "B"), fits, step_seconds, row.command.replace(start, "..."))
    return table


def _common_start(plan: Any) -> str:
    """The common start of the commands of all methods."""
    commands = [row.command.split() for row in plan.rows if row.command.startswith("zerograd tune")]
    common = itertools.takewhile(lambda words: len(set(words)) == 1, zip(*commands, strict=False))
    return " ".join(words[0] for words in common)
