"""When a value of a table is empty, and when two are equal, whatever format they came from."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d{1,3})?")
"""A number as a table writes it. A code such as 007 is a text."""


def is_nan(value: Any) -> bool:
    return isinstance(value, (float, Decimal)) and math.isnan(value)


def is_empty(value: Any) -> bool:
    """Whether a value stands for nothing: null, NaN, or a text of spaces."""
    return value is None or is_nan(value) or (isinstance(value, str) and not value.strip())


def key(value: Any) -> str:
    """A text that equal values share: 1, 1.0 and "1" are equal, true and "True" are, and true and 1 are not."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip()
    if not isinstance(value, str) or NUMBER.fullmatch(text):
        return _number(text)
    return text.lower() if text.lower() in ("true", "false") else text


def _number(text: str) -> str:
    """A number without trailing zeros; any other text as it is."""
    if not NUMBER.fullmatch(text):
        return text
    number = Decimal(text).normalize()
    return f"{number + 0:f}" if abs(number.adjusted()) < 40 else str(number)


def word(value: Any) -> str:
    """A value as an answer is written: 1.0 as 1, others as they are."""
    return str(value).strip() if isinstance(value, (str, bool)) else key(value)
