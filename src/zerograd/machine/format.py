"""Numbers as text for screen and pages: percent, intervals, bytes, durations, counts.

Texts are plain ASCII. Pages put typographic minus signs and spaces into them (`zerograd.report.document.typeset`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PREFIXES = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
"""The decimal prefixes of a unit."""


def percent(share: float, digits: int = 1, sign: str = "") -> str:
    """A share in percent: 88.3 %. sign: "+" also writes the sign of a positive share."""
    return f"{100 * share:{sign}.{digits}f} %"


@dataclass(frozen=True)
class Measure:
    """Text for the values of a metric: a share in percent, any other value as a plain number.

    A gain is a difference of two values. It has a sign, and is in percentage points for a share.
    """

    is_share: bool

    @property
    def scale(self) -> int:
        """The factor from a value to the number in the text."""
        return 100 if self.is_share else 1

    def value(self, value: float, unit: bool = False) -> str:
        """A value: 88.3, or 88.3 % with its unit."""
        return self._number(value, "", ".1f", ".4g") + " %" * (unit and self.is_share)

    def gain(self, gain: float, unit: bool = False) -> str:
        """A gain: +1.2, or +1.2 points with its unit."""
        return self._number(gain, "+", ".1f", ".3g") + " points" * (unit and self.is_share)

    def interval(self, ends: Sequence[float]) -> str:
        """Both ends of an interval of a value: 86.9, 89.7."""
        return ", ".join(map(self.value, ends))

    def gain_interval(self, ends: Sequence[float]) -> str:
        """Both ends of an interval of a gain: +0.2, +2.2."""
        return ", ".join(map(self.gain, ends))

    def _number(self, value: float, sign: str, of_share: str, of_other: str) -> str:
        return format(self.scale * value, sign + (of_share if self.is_share else of_other))


def count(n: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 row, 2,000 rows. many: the plural, if it is not `one` with an s."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def passes(forwards: int, backwards: int = 0) -> str:
    """The passes of a run through its model: 900 forward passes, no backward pass."""
    if backwards:
        return f"the work of {forwards:,} forward passes, {backwards:,} backward passes in it"
    return f"{count(forwards, 'forward pass', 'forward passes')}, no backward pass"


def megabytes(size: float) -> str:
    """Bytes in MB of 10^6 bytes: 1,312 MB."""
    return f"{size / 1e6:,.0f} MB"


def mebibytes(size: float) -> str:
    """Bytes in MB of 2^20 bytes, as `zerograd tune` prints memory: 1251 MB."""
    return f"{size / 2**20:.0f} MB"


def quantity(value: float, unit: str) -> str:
    """A value with three digits and the prefix that suits it: 1.31 GB."""
    letter = next((letter for letter in reversed(PREFIXES) if value >= 0.9995 * PREFIXES[letter]), "")
    return f"{value / PREFIXES.get(letter, 1.0):.3g} {letter}{unit}"


def seconds(s: float, digits: int = 0) -> str:
    """A time in seconds: 300 s."""
    return f"{s:.{digits}f} s"


def duration(s: float) -> str:
    """A time in seconds, in the unit that suits it: 42 ms, 2.0 s, 300 s, 2.2 h."""
    return f"{s * 1e3:.0f} ms" if s < 1 else f"{s:.1f} s" if s < 10 else f"{s:,.0f} s" if s < 7200 else f"{s / 3600:.1f} h"


def clock(s: float) -> str:
    """A time in seconds as minutes and seconds: 4:05."""
    return f"{int(s // 60)}:{int(s % 60):02}"


def minutes(s: float) -> str:
    """A time in seconds, in minutes: 4.1 minutes."""
    return f"{s / 60:.1f} minutes"
