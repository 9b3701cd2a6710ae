"""zerograd ship: a finished run as one small file, which makes the tuned model again beside its base."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    parser = verbs.add_parser("ship", help="write a finished run as one small file", description=__doc__)
    parser.add_argument("run_folder", metavar="RUN", help="a finished run's folder")
    parser.add_argument("--out", metavar="FILE", required=True, help="where it goes, such as tuned.zg")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    from zerograd.runs.ship import ship

    size = ship(parsed.run_folder, Path(parsed.out))
    print(f"{parsed.out}: {size:,} bytes; zerograd predict {parsed.out}, or zerograd.load({parsed.out!r}), on the same base")
    return 0
