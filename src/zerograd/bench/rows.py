"""The rows of a leaderboard: JSON lines, one per run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerograd.machine.files import lock, write_all

Row = Mapping[str, Any]

REQUIRED_FIELDS = ("method", "scheme", "task", "prompt", "seed", "accuracy", "evaluations", "seconds", "peak_bytes")
"""Fields that every row must have."""

KEY_FIELDS = ("protocol", "model", *REQUIRED_FIELDS[:5])
"""Fields that make the key of a row without one."""


def read(path: Path) -> list[Row]:
    """The rows of a file, the last one of each key.

    Raises FileNotFoundError, or ValueError naming a line that is not a row.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; zerograd bench run writes one")
    by_key: dict[str, Row] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                continue  # an incomplete last line
            raise ValueError(f"{path}, line {number}: not JSON") from None
        missing = [name for name in REQUIRED_FIELDS if name not in row] if isinstance(row, dict) else list(REQUIRED_FIELDS)
        if missing:
            raise ValueError(f"{path}, line {number}: it has no {missing[0]}")
        row = {"protocol": "", "model": "", "study": ""} | row
        key = str(row.get("key") or "/".join(str(row[name]) for name in KEY_FIELDS))
        by_key.pop(key, None)  # a later row moves to its own place
        by_key[key] = row
    return list(by_key.values())


def same_outcome(one: Row, other: Row) -> bool:
    """Whether two runs have the same outcome at matched evaluations: in every test row's answer, and in the dev loss of
    every look that both took after as many evaluations.
    """
    losses = [
        {look["evaluations"]: look.get("dev_loss") for look in row.get("curve", ()) if look["evaluations"] <= row["evaluations"]}
        for row in (one, other)
    ]
    same_losses = all(loss == losses[1].get(count, loss) for count, loss in losses[0].items())
    return same_losses and (one["test"], one["right"]) == (other["test"], other["right"])


def append(path: Path, row: Row) -> None:
    """Add a row, which is on disk when this returns. An incomplete last line of an interrupted process is removed.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:  # several runners may share a file
        lock(file.fileno(), path, wait=True)
        file.seek(0)
        text = file.read()
        last = text[text.rfind(b"\n") + 1 :]
        if last and not _is_json(last):
            file.truncate(len(text) - len(last))
        write_all(file.fileno(), b"\n" * _is_json(last) + json.dumps(row).encode() + b"\n")
        os.fsync(file.fileno())


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def pack(right: str) -> str:
    """Zeros and ones, one per test row, as hexadecimal digits."""
    return f"{int('1' + right, 2):x}"


def unpack(text: str) -> list[int]:
    """The zeros and ones that `pack` took. Raises ValueError for a text that is not hexadecimal."""
    return [int(bit) for bit in f"{int(text, 16):b}"[1:]]


def share(right: str) -> float:
    """The share of ones."""
    return right.count("1") / len(right)


def result_fields(result: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row from a run's result: at matched evaluations, and with the suffix `_seconds` at matched
    seconds.

    Without a budget of seconds, the `_seconds` fields are None; without one of evaluations, `accuracy`, `evaluations`
    and `seconds` are those at matched seconds.
    """
    at = result["at"]
    main, timed = at.get("evaluations") or at["seconds"], at.get("seconds")
    return {
        "accuracy": share(main["right"]),
        "evaluations": main["evaluations"],
        "seconds": main["seconds"],
        "cpu_seconds": main["cpu_seconds"],
        "peak_bytes": result["peak_bytes"],
        "state_bytes": result["state_bytes"],
        "weight_bytes": result["weight_bytes"],
        "accuracy_seconds": timed and share(timed["right"]),
        "evaluations_seconds": timed and timed["evaluations"],
        "seconds_seconds": timed and timed["seconds"],
        "cpu_seconds_seconds": timed and timed["cpu_seconds"],
        "accuracy_before": share(result["right_before"]),
        "test": result["test"],
        "test_rows": result["test_rows"],
        "right": pack(main["right"]),
        "right_seconds": timed and pack(timed["right"]),
        "right_before": pack(result["right_before"]),
        **{name: result[name] for name in ("lr", "steps", "stopped", "curve", "load")},
    }


def machine_name(row: Row) -> str:
    """The machine of a row's seconds, in words; empty if the row does not name it."""
    of, threads = row.get("machine", {}), row.get("settings", {}).get("threads")
    parts = [of.get("cpu", ""), f"{of.get('cores')} cores" * bool(of.get("cores")), f"{threads} threads" * bool(threads)]
    return ", ".join(filter(None, parts)).replace(" 1 threads", " 1 thread")


def at_budget(row: Row, budget: str) -> tuple[float, float, float, Sequence[int]] | None:
    """(accuracy, evaluations, seconds, right answers) of a row at a budget, "evaluations" or "seconds"; None if the row
    lacks that budget.
    """
    end = "_seconds" if budget == "seconds" else ""
    if budget not in row.get("budget", {budget: 1}) or row.get(f"accuracy{end}") is None:
        return None
    right = row.get(f"right{end}")
    return row[f"accuracy{end}"], row[f"evaluations{end}"], row[f"seconds{end}"], unpack(right) if right else ()
