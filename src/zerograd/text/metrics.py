"""Metrics of predictions against references: the usual ones, and any function of a user's."""

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
    """A number of predictions and their references; more is better.

    by_row: of a single row, where the whole is the mean over rows; None of a metric that is of all rows together.
    """

    name: str
    of_all: Callable[[Sequence[str], Sequence[Reference]], float]
    by_row: Callable[[str, Reference], float] | None = None

    def __call__(self, predictions: Sequence[str], references: Sequence[Reference]) -> float:
        """Its value. Raises ValueError when it is not a finite number."""
        value = self.of_all(predictions, references)
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"metric {self.name} returned {value!r}; it must return a finite number, more being better")
        return number


def metric(name: str) -> Metric:
    """A metric by name, or `module:function` or `file.py:function` of a user's, called with a list of predictions and a list of
    references. Raises ValueError when there is none of that name.
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
    """A text as SQuAD compares it: lower case, without punctuation, articles and repeated spaces (Rajpurkar et al. 2016)."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def accuracy(prediction: str, reference: Reference) -> float:
    """1 where the prediction is the reference, or one of them, spaces around apart."""
    return float(any(prediction.strip() == one.strip() for one in _several(reference)))


def exact_match(prediction: str, reference: Reference) -> float:
    """1 where prediction and reference, or one of them, are the same when normalised."""
    return float(any(normalised(prediction) == normalised(one) for one in _several(reference)))


def token_f1(prediction: str, reference: Reference) -> float:
    """The harmonic mean of precision and recall of words, normalised; of several references, the best."""
    return max(_overlap(normalised(prediction).split(), normalised(one).split()) for one in _several(reference))


def macro_f1(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """The mean over the references' values of the F1 of each."""
    pairs = [(p.strip(), _several(r)) for p, r in zip(predictions, references, strict=True)]
    right = Counter(p for p, rs in pairs if p in [r.strip() for r in rs])
    said = Counter(p for p, _ in pairs)
    there = Counter(p if p in [r.strip() for r in rs] else rs[0].strip() for p, rs in pairs)
    return sum(2 * right[v] / (said[v] + there[v]) for v in there) / max(1, len(there))


def _overlap(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def _several(reference: Reference) -> Sequence[str]:
    return [reference] if isinstance(reference, str) else reference


_BY_ROW: dict[str, Callable[[str, Reference], float]] = {"accuracy": accuracy, "exact-match": exact_match, "token-f1": token_f1}

METRICS = (*_BY_ROW, "f1")


def is_share(name: str) -> bool:
    """Whether a metric, by its name, is a share of the rows or a mean of shares, and is written in percent."""
    return name in METRICS
