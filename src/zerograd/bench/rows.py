"""The rows of a leaderboard: JSON lines, one a run, whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerograd.machine.files import lock, write_all

Row = Mapping[str, Any]

NEEDED = ("method", "scheme", "task", "prompt", "seed", "accuracy", "evaluations", "seconds", "peak_bytes")
"""Fields without which a line is no row."""

NAMES = ("protocol", "model", *NEEDED[:5])
"""Of which a row's key is made where it has none."""


def read(path: Path) -> list[Row]:
    """The rows of a file, the last of each key. Raises FileNotFoundError or ValueError naming the line that is none."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; zerograd bench run writes one")
    found: dict[str, Row] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                continue  # it was being written
            raise ValueError(f"{path}, line {number}: not JSON") from None
        missing = [name for name in NEEDED if name not in row] if isinstance(row, dict) else list(NEEDED)
        if missing:
            raise ValueError(f"{path}, line {number}: it has no {missing[0]}")
        row = {"protocol": "", "model": "", "study": ""} | row
        key = str(row.get("key") or "/".join(str(row[name]) for name in NAMES))
        found.pop(key, None)  # the later one stands where it was written
        found[key] = row
    return list(found.values())


def same(one: Row, other: Row) -> bool:
    """Whether two runs of a row are alike at matched evaluations: in every test row's answer, and in the dev loss of every look
    that both took after as many evaluations.
    """
    losses = [
        {look["evaluations"]: look.get("dev_loss") for look in row.get("curve", ()) if look["evaluations"] <= row["evaluations"]}
        for row in (one, other)
    ]
    alike = all(loss == losses[1].get(count, loss) for count, loss in losses[0].items())
    return alike and (one["test"], one["right"]) == (other["test"], other["right"])


def append(path: Path, row: Row) -> None:
    """Add a row, on the disk when this returns. What a process that was cut off has left of a line goes. Raises OSError."""
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


def packed(right: str) -> str:
    """Zeros and ones, one a test row, as hexadecimal digits."""
    return f"{int('1' + right, 2):x}"


def unpacked(text: str) -> list[int]:
    """Zeros and ones, as they were before `packed`. Raises ValueError for what is none."""
    return [int(bit) for bit in f"{int(text, 16):b}"[1:]]


def share(right: str) -> float:
    """Of ones."""
    return right.count("1") / len(right)


def fields(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a row tells of a run's result: at matched evaluations, and with `_seconds` at matched seconds.

    A budget that the study does not have leaves None; `accuracy`, `evaluations` and `seconds` are then of the one that it has.
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
        "right": packed(main["right"]),
        "right_seconds": timed and packed(timed["right"]),
        "right_before": packed(result["right_before"]),
        **{name: result[name] for name in ("lr", "steps", "stopped", "curve", "load")},
    }


def machine(row: Row) -> str:
    """What its seconds were measured on, in words; empty where it does not say."""
    of, threads = row.get("machine", {}), row.get("settings", {}).get("threads")
    parts = [of.get("cpu", ""), f"{of.get('cores')} cores" * bool(of.get("cores")), f"{threads} threads" * bool(threads)]
    return ", ".join(filter(None, parts)).replace(" 1 threads", " 1 thread")


def matched(row: Row, budget: str) -> tuple[float, float, float, Sequence[int]] | None:
    """(accuracy, evaluations, seconds, right answers) of a row at a budget, "evaluations" or "seconds"; None without that."""
    end = "_seconds" if budget == "seconds" else ""
    if budget not in row.get("budget", {budget: 1}) or row.get(f"accuracy{end}") is None:
        return None
    right = row.get(f"right{end}")
    return row[f"accuracy{end}"], row[f"evaluations{end}"], row[f"seconds{end}"], unpacked(right) if right else ()
