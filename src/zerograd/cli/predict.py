"""zerograd predict: answer new rows with the tuned model of a finished run."""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

from zerograd.cli.bar import Bar
from zerograd.machine.quiet import quiet
from zerograd.tune.settings import TaskSettings

ENDINGS = (".csv", ".tsv", ".jsonl")


def add(verbs: Any) -> None:
    parser = verbs.add_parser("predict", help="answer new rows with a finished run's model", description=__doc__)
    parser.add_argument("run_folder", metavar="RUN", nargs="?", default="", help="a finished run's folder, or its shipped file")
    parser.add_argument("--model", metavar="FILE", default="", help="a shipped file, in place of RUN")
    parser.add_argument("--base", metavar="MODEL", default="", help="the base model of a shipped run (default: as in the run)")
    parser.add_argument("--data", metavar="FILE", required=True, help="rows with the columns that the run's prompt reads")
    parser.add_argument(
        "--out", metavar="FILE", required=True, help=f"the file of answers; its ending is one of {', '.join(ENDINGS)}"
    )
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--threads", metavar="INT", type=int, default=0, help="CPU threads; 0 for all cores (default: 0)")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    out = Path(parsed.out)
    if out.suffix not in ENDINGS:
        raise ValueError(f"out is {parsed.out}; it must end in one of {', '.join(ENDINGS)}")
    if bool(parsed.run_folder) == bool(parsed.model):
        raise ValueError("model is a shipped file in place of RUN; give one of them")
    settings = TaskSettings(device=parsed.device, threads=parsed.threads)
    from rich.console import Console

    from zerograd.machine.files import write_text
    from zerograd.runs.predict import predict
    from zerograd.runs.ship import open_run_or_file

    quiet()
    console = Console()
    with Bar(console) as bar:
        rows = predict(open_run_or_file(parsed.run_folder or parsed.model, parsed.base), parsed.data, settings, bar.show)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, "".join(json.dumps(row) + "\n" for row in rows) if out.suffix == ".jsonl" else _table(rows, out.suffix))
    console.print(f"{len(rows):,} predictions in {out}", highlight=False)
    return 0


def _table(rows: list[dict[str, Any]], ending: str) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, delimiter="\t" if ending == ".tsv" else ",", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
