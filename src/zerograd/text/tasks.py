"""Tasks: labelled texts with a fixed split, a prompt, and the options a model chooses between.

The sentiment data is C. J. Hutto and E. Gilbert's (VADER, ICWSM 2014; MIT, notice in `sentiment/LICENSE`): sentences with
the mean of ten or more human scores in [-4, 4]. The task is the sign of the score where it is clear, abs(score) >= 1.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from importlib import resources

CLEAR = 1.0
"""The least absolute score of a sentence whose sign is asked."""

OPTIONS = (" negative", " positive")


@dataclass(frozen=True)
class Example:
    """A text and the index of its right option."""

    id: str
    text: str
    label: int


@dataclass(frozen=True)
class Task:
    """A classification by option log-likelihood.

    prompt: a template with {text}. options: what may follow the prompt, in the order of labels. train, dev, test: disjoint;
    no text stands in two of them.
    """

    name: str
    prompt: str
    options: tuple[str, ...]
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]


# source: (what the prompt calls a text, test rows, dev rows); the rest is for training
_SENTIMENT = {
    "movies": ("Review", 2000, 500),
    "products": ("Review", 800, 300),
    "news": ("Review", 500, 250),
    "tweets": ("Review", 800, 300),
}

TASKS = tuple(f"sentiment-{source}" for source in _SENTIMENT)


def load(name: str) -> Task:
    """A built-in task. Raises ValueError for a name that is not in TASKS."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is not one of {', '.join(TASKS)}")
    source = name.removeprefix("sentiment-")
    kind, test, dev = _SENTIMENT[source]
    packed = resources.files("zerograd.text").joinpath("sentiment", f"{source}.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    unique = {row["text"].strip().lower(): row for row in rows if abs(row["score"]) >= CLEAR}
    ordered = sorted(unique.values(), key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    examples = tuple(Example(row["id"], row["text"].strip(), int(row["score"] > 0)) for row in ordered)
    return Task(
        name, f"{kind}: {{text}}\nSentiment:", OPTIONS, examples[test + dev :], examples[test : test + dev], examples[:test]
    )
