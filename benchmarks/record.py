"""What every committed result carries: machine, versions, commit, and whether the tree was dirty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from zerograd.machine.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def save(name: str, payload: dict[str, Any]) -> Path:
    """Write a result under benchmarks/results and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(provenance() | payload, indent=1) + "\n")
    return path


def fresh(*command: str) -> Any:
    """What a command says in the last line of its output, as JSON: a measurement in a process of its own."""
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])
