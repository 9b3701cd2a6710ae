"""Sizes and rates as people write them, read: 8B parameters, 24GB, 3.35TB/s, 400TFLOPS."""

from __future__ import annotations

import re

from zerograd.machine.format import PREFIXES

POWERS = {"": 1.0, "B": 1e9} | PREFIXES
"""What a letter before a unit stands for; B is a billion, of things that are counted alone."""

_WRITTEN = {"": "8B or 135M", "B": "24GB or 24GiB", "B/s": "900GB/s or 3.35TB/s", "FLOPS": "400TFLOPS"}


def read(field: str, text: str, unit: str = "") -> float:
    """A quantity: a number above 0, a letter of POWERS ("Ki" and its like are powers of 1024), and the unit, or nothing for it.

    field: its name, for what is wrong. unit: "" for a count, "B", "B/s" or "FLOPS" (FLOP/s is one too).
    Raises ValueError naming field and value.
    """
    letters = "[KMBT]?" if not unit else "[KMGTP]?i?"
    units = f"({re.escape(unit)})?" if unit != "FLOPS" else "(FLOPS|FLOP/S)?"
    found = re.fullmatch(rf"(\d+\.?\d*|\.\d+)\s*({letters}){units}", text.strip(), re.IGNORECASE)
    power = found[2].upper() if found else "I"
    if found is None or power == "I" or not float(found[1]):
        raise ValueError(f"{field} is {text!r}; write it like {_WRITTEN[unit]}")
    if power.endswith("I"):
        return float(found[1]) * 1024.0 ** ("KMGTP".index(power[0]) + 1)
    return float(found[1]) * POWERS[power]


def is_count(text: str) -> bool:
    """Whether a text is a count with a letter, such as 8B."""
    return re.fullmatch(r"(\d+\.?\d*|\.\d+)[KMBT]", text.strip(), re.IGNORECASE) is not None
