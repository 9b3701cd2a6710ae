"""zerograd bench: compare methods at matched evaluations and at matched seconds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zerograd.cli.bar import Bar
from zerograd.machine.format import percent


def add(verbs: Any) -> None:
    parser = verbs.add_parser("bench", help="compare methods at matched budgets", description=__doc__)
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    run = acts.add_parser("run", help="run the missing searches and rows of a study")
    run.add_argument("study", metavar="STUDY", help="a YAML file; docs/benchmarks.md shows one")
    run.add_argument(
        "--out", metavar="FOLDER", default="benchmarks/results", help="the folder of results (default: benchmarks/results)"
    )
    run.add_argument("--methods", metavar="NAME", nargs="+", default=[], help="run only these methods of the study")
    run.add_argument("--again", metavar="KEY", default="", help="repeat the run of one row, compare the outcome, and add no row")
    run.add_argument("--dry-run", action="store_true", help="check the study, list its missing runs, and exit")
    run.set_defaults(run=_run)
    table = acts.add_parser("table", help="print the tables of a leaderboard")
    page = acts.add_parser("page", help="write a leaderboard as one HTML page")
    for one, act in ((table, _table), (page, _page)):
        one.add_argument("file", metavar="FILE", help="a leaderboard.jsonl")
        one.set_defaults(run=act)
    page.add_argument("--out", metavar="FILE", default="leaderboard.html", help="the page to write (default: leaderboard.html)")


def _run(parsed: argparse.Namespace) -> int:
    from rich.console import Console

    from zerograd.bench import study as studies
    from zerograd.bench.runner import Runner
    from zerograd.machine.quiet import quiet

    quiet()
    study = studies.read(Path(parsed.study))
    for method in parsed.methods:
        if method not in study.methods:
            raise ValueError(f"methods has {method!r}, which study {study.name} lacks; choose from {', '.join(study.methods)}")
    _require_optuna()
    console = Console()
    with Bar(console, lambda progress: progress.activity) as bar:
        runner = Runner(study, Path(parsed.out), bar.show, bar.say)
        if parsed.dry_run:
            for line in runner.plan(parsed.methods):
                bar.say(line)
        elif parsed.again:
            return _again(runner, parsed.again, bar)
        else:
            try:
                count = runner.run(parsed.methods)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("stopped; finished runs are saved, and the same command continues") from None
            bar.say(f"{count} new rows in {runner.leaderboard}")
    return 0


def _again(runner: Any, key: str, bar: Bar) -> int:
    from zerograd.bench import rows

    before, now = runner.rerun(key)
    same = rows.same_outcome(before, now)
    outcome = "the same answers and dev losses" if same else "different answers or dev losses"
    if "evaluations" not in before["budget"]:
        outcome += "; a run with a limit of seconds takes a different number of steps each time"
    elif before["machine"] != now["machine"] or before["commit"] != now["commit"]:
        outcome += "; the machine or the commit differs"
    bar.say(f"{key}: accuracy {percent(before['accuracy'], 2)} before, {percent(now['accuracy'], 2)} now; {outcome}")
    return 0 if same else 1


def _table(parsed: argparse.Namespace) -> int:
    from zerograd.bench import rows, tables

    print("\n\n".join(map(tables.markdown, tables.tables(rows.read(Path(parsed.file))))))
    return 0


def _page(parsed: argparse.Namespace) -> int:
    from zerograd.bench import page, rows

    page.write(Path(parsed.out), rows.read(Path(parsed.file)))
    print(parsed.out)
    return 0


def _require_optuna() -> None:
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise ValueError("optuna is not installed; pip install 'zerograd[bench]'")
