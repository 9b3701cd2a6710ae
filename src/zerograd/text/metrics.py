"""Metrics of predictions against references: common ones, and a user's own function."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zerograd.settings.user_code import load_user_object

Reference = str | Sequence[str]
"""The right answer of a row, or all of its right answers."""


@dataclass(frozen=True)
class Metric:
    """A number for predictions and references; higher is better.

    of_all: the metric of all rows. by_row: the metric of one row, if the whole is the mean over rows, else None.
    """

    name: str
    of_all: Callable[[Sequence[str], Sequence[Reference]], float]
    by_row: Callable[[str, Reference], float] | None = None

    def __call__(self, predictions: Sequence[str], references: Sequence[Reference]) -> float:
        """The value of the metric. Raises ValueError when it is not a finite number."""
        value = self.of_all(predictions, references)
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"metric {self.name} returned {value!r}; it must return a finite number, higher is better")
        return number


def metric(name: str) -> Metric:
    """A metric by its name in METRICS, or a user's `module:function` or `file.py:function`.

    A user's function takes a list of predictions and a list of references.
    Raises ValueError for an unknown name.
    """
    if name in _BY_ROW:
        by_row = _BY_ROW[name]
        return Metric(name, lambda ps, rs: sum(map(by_row, ps, rs)) / max(1, len(ps)), by_row)
    if name == "f1":
        return Metric(name, macro_f1)
    if ":" not in name:
        raise ValueError(f"metric {name!r} is not one of {', '.join(METRICS)}, nor module:function")
    return Metric(name, load_user_object(name, "metric"))


def normalised(text: str) -> str:
    """A text as SQuAD compares it: lower case, without punctuation, articles and repeated spaces (Rajpurkar et al.
    2016).
    """
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def accuracy(prediction: str, reference: Reference) -> float:
    """1 if the prediction equals a reference, without spaces around, else 0."""
    return float(any(prediction.strip() == one.strip() for one in _several(reference)))


def exact_match(prediction: str, reference: Reference) -> float:
    """1 if the prediction equals a reference once both are normalised, else 0."""
    return float(any(normalised(prediction) == normalised(one) for one in _several(reference)))


def token_f1(prediction: str, reference: Reference) -> float:
    """The harmonic mean of precision and recall of normalised words; the best over several references."""
    return max(_overlap(normalised(prediction).split(), normalised(one).split()) for one in _several(reference))


def macro_f1(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """The mean F1 over the different references."""
    pairs = [(p.strip(), _several(r)) for p, r in zip(predictions, references, strict=True)]
    right = Counter(p for p, rs in pairs if p in [r.strip() for r in rs])
    predicted = Counter(p for p, _ in pairs)
    expected = Counter(p if p in [r.strip() for r in rs] else rs[0].strip() for p, rs in pairs)
    return sum(2 * right[v] / (predicted[v] + expected[v]) for v in expected) / max(1, len(expected))


def _overlap(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def _several(reference: Reference) -> Sequence[str]:
    return [reference] if isinstance(reference, str) else reference


_BY_ROW: dict[str, Callable[[str, Reference], float]] = {"accuracy": accuracy, "exact-match": exact_match, "token-f1": token_f1}

METRICS = (*_BY_ROW, "f1")


def is_share(name: str) -> bool:
    """Whether a metric is a share, written in percent."""
    return name in METRICS
