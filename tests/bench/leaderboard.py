"""Rows of a leaderboard, made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zerograd.bench import rows


def row(method: str, seed: int, right: str, **more: Any) -> dict[str, Any]:
    fields = {
        "key": f"p/m/{method}/upper/t/aligned/{seed}", "study": "s", "protocol": "p", "model": "m", "method": method,
        "scheme": "upper", "task": "t", "prompt": "aligned",
        "seed": seed, "accuracy": rows.share(right), "evaluations": 100, "seconds": 20.0 + seed,
        "peak_bytes": 3e6, "state_bytes": 1e6, "right": rows.pack(right), "test": "x", "test_rows": len(right), "lr": 0.1,
        "accuracy_before": 0.5, "budget": {"evaluations": 100}, "reference": "mezo", "commit": "c", "curve": [],
    }  # fmt: skip
    return fields | more


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines))
    return path
