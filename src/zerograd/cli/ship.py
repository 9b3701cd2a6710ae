"""zerograd ship: write a finished run as one small file, from which the base model becomes the tuned model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    parser = verbs.add_parser("ship", help="write a finished run as one small file", description=__doc__)
    parser.add_argument("run_folder", metavar="RUN", help="a finished run's folder")
    parser.add_argument("--out", metavar="FILE", required=True, help="the file to write, such as tuned.zg")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    from zerograd.runs.ship import ship

    size = ship(parsed.run_folder, Path(parsed.out))
    use = f"use it with zerograd predict {parsed.out}, or zerograd.load({parsed.out!r}), on the same base"
    print(f"{parsed.out}: {size:,} bytes; {use}")
    return 0
