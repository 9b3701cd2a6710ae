"""A table of sixty rows, a run of three steps on it, and what a command prints."""

from __future__ import annotations

import json
from typing import Any

from zerograd.cli import main

ROWS = [
    {"body": f"{'good' if i % 2 else 'bad'} film, number {i}", "stars": ["no", "yes"][i % 2], "year": str(i)} for i in range(60)
]
QUICK = ["--minutes", "0", "--steps", "3", "--batch-size", "8", "--threads", "1", "--evals", "1"]
COLUMNS = ["--text", "body", "--label", "stars"]


def tuned(folder, data, out, *more) -> dict[str, Any]:
    assert main(["tune", "--model", str(folder), "--data", str(data), "--out", str(out), *QUICK, *more]) == 0
    return json.loads((out / "result.json").read_text())


def said(capsys, *command: str, code: int = 0) -> str:
    """What a command prints, on either stream."""
    assert main([str(word) for word in command]) == code
    caught = capsys.readouterr()
    return " ".join((caught.out + caught.err).split())
