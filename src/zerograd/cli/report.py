"""zerograd report: write the report of a finished run again, or compare several runs on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    parser = verbs.add_parser("report", help="write the report of a run, or compare several runs", description=__doc__)
    parser.add_argument(
        "folders", metavar="RUN", nargs="+", help="folders of finished runs; several must have the same task and metric"
    )
    parser.add_argument(
        "--out", metavar="FILE", default="", help="the page (default: RUN/report.html, or comparison.html for several runs)"
    )
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    from rich.console import Console

    from zerograd.report import compare_page, run_page
    from zerograd.runs.compare import comparison
    from zerograd.runs.folder import open_run

    runs = [open_run(folder) for folder in parsed.folders]
    if len(runs) == 1:
        (only,) = runs
        out = Path(parsed.out or only.folder / "report.html")
        run_page.write(out, only.result | only.record, only.history, only.predictions)
    else:
        out = Path(parsed.out or "comparison.html")
        compare_page.write(out, **comparison(runs))
    Console().print(str(out), highlight=False)
    return 0
