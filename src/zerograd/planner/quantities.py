"""Parsing of sizes and rates: 8B parameters, 24GB, 3.35TB/s, 400TFLOPS."""

from __future__ import annotations

import re

from zerograd.machine.format import PREFIXES

POWERS = {"": 1.0, "B": 1e9} | PREFIXES
"""The factor of a letter before a unit; B is a billion, in counts without a unit."""

_WRITTEN = {"": "8B or 135M", "B": "24GB or 24GiB", "B/s": "900GB/s or 3.35TB/s", "FLOPS": "400TFLOPS"}


def read(field: str, text: str, unit: str = "") -> float:
    """The value of a text: a number above 0, a letter of POWERS ("Ki" and similar are powers of 1024), and optionally
    the unit.

    field: the name for messages. unit: "" for a count, "B", "B/s" or "FLOPS" (or FLOP/s).
    Raises ValueError naming field and value.
    """
    letters = "[KMBT]?" if not unit else "[KMGTP]?i?"
    units = f"({re.escape(unit)})?" if unit != "FLOPS" else "(FLOPS|FLOP/S)?"
    match = re.fullmatch(rf"(\d+\.?\d*|\.\d+)\s*({letters}){units}", text.strip(), re.IGNORECASE)
    power = match[2].upper() if match else "I"
    if match is None or power == "I" or not float(match[1]):
        raise ValueError(f"{field} is {text!r}; write it like {_WRITTEN[unit]}")
    if power.endswith("I"):
        return float(match[1]) * 1024.0 ** ("KMGTP".index(power[0]) + 1)
    return float(match[1]) * POWERS[power]


def is_count(text: str) -> bool:
    """Whether a text is a count with a letter, such as 8B."""
    return re.fullmatch(r"(\d+\.?\d*|\.\d+)[KMBT]", text.strip(), re.IGNORECASE) is not None
