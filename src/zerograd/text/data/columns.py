"""The task that a table's columns suggest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from zerograd.machine.format import count
from zerograd.text.data.files import Row
from zerograd.text.data.tasks import TaskSpec
from zerograd.text.data.templates import Template, reference
from zerograd.text.data.values import is_empty, key, word

ALPACA = "{{ instruction }}{% if input is defined and input %}\n\n{{ input }}{% endif %}"
"""The prompt of rows with the columns instruction, input and output (Taori et al. 2023)."""

PAIRS = (
    ("question", "answer"), ("question", "response"), ("query", "response"), ("query", "answer"), ("prompt", "response"),
    ("prompt", "chosen"), ("instruction", "response"), ("input", "output"), ("input", "target"), ("source", "target"),
    ("document", "summary"), ("article", "highlights"), ("text", "summary"), ("context", "response"),
)  # fmt: skip
"""Columns that other tools take for a prompt and its free answer."""

MOST_LABELS = 100
"""The most different values of a label column; a column with more is a text."""


def from_rows(
    name: str,
    rows: Sequence[Row],
    text: str = "",
    label: str = "",
    template: str = "",
    options: Sequence[str] = (),
) -> TaskSpec:
    """The task that a table's columns suggest: messages, prompt and completion, or a text with a label.

    text, label: names of columns; "text" and "label" when empty. template: the prompt; when empty, the text with the
    label's name on the next line. options: words in the order of the sorted labels, or LABEL=WORD; the labels
    themselves when empty.
    Raises ValueError naming what is missing.
    """
    columns = list(dict.fromkeys(column for row in rows[:100] for column in row))
    named = text or label or template or options
    if not named and "messages" in columns:
        return TaskSpec(name, messages="messages")
    if not named and "conversations" in columns:
        return TaskSpec(name, messages="conversations")
    if not named and {"prompt", "completion"} <= set(columns):
        return TaskSpec(name, prompt="{{ prompt }}", answer="completion", before="")
    if not named and {"instruction", "output"} <= set(columns):
        return TaskSpec(name, prompt=ALPACA, answer="output", before="\n\n")
    if "mask" in columns:  # a column comes before the answer's place of masked models
        template = re.sub(r"\{\{\s*mask\s*\}\}", f"{{{{ {reference('mask')} }}}}", template)
    label = label or "label"
    text = text or ("" if template else "text")
    for given, flag in ((text, "text"), (label, "label")):
        if given and given not in columns:
            mend = f"name one with --{flag}{_free_answers(columns)}"
            raise ValueError(f"{flag} is {given!r}, which is not a column of {name}; the columns are {', '.join(columns)}; {mend}")
    for number, row in enumerate(rows, 1):
        if is_empty(row.get(label)):
            raise ValueError(f"{name}: row {number}: {label} is empty; fill it, or leave the row out")
        if isinstance(row[label], (list, tuple, Mapping)):
            raise ValueError(
                f"{name}: row {number}: {label} is a {type(row[label]).__name__}, and a label is one value; choose a part of it"
            )
    value_of = {key(row[label]): row[label] for row in reversed(rows)}
    values = [_plain(value_of[name]) for name in sorted(value_of)]
    if len(values) > MOST_LABELS:
        mend = "for free answers name the columns prompt and completion, or write a task with `answer`"
        raise ValueError(f"label {label!r} has {len(values)} different values, more than {MOST_LABELS}; {mend}")
    words = _words(values, options, label)
    title = label.replace("_", " ").strip().capitalize()
    title = f"{{{{ {title!r} }}}}" if set("{}") & set(title) else title
    return TaskSpec(
        name,
        prompt=template or f"{{{{ {reference(text)} }}}}\n{title}:",
        options=tuple(f" {word}" for word in words),
        label=label,
        labels=tuple(values),
        cut=text if text and (not template or text in Template(template).names) else "",
    )


def _free_answers(columns: Sequence[str]) -> str:
    """How to train free answers, where two columns look like a prompt and its answer."""
    pair = next((pair for pair in PAIRS if set(pair) <= set(columns)), None)
    if pair is None:
        return ""
    return f", or for free answers give --task a YAML file of two lines: 'prompt: \"{{{{ {pair[0]} }}}}\"' and 'answer: {pair[1]}'"


def _plain(value: Any) -> Any:
    """A label as YAML holds it: a text, a truth value, or a number."""
    if isinstance(value, (str, bool)):
        return value
    return (
        float(value)
        if isinstance(value, float) and not value.is_integer()
        else int(key(value))
        if key(value).isdigit()
        else word(value)
    )


def _words(values: Sequence[Any], options: Sequence[str], label: str) -> list[str]:
    """The word of each label."""
    values_text = ", ".join(map(str, values))
    if not options:
        return [word(value) for value in values]
    if all("=" in option for option in options):
        given = dict(option.split("=", 1) for option in options)
        given = {key(value): word for value, word in given.items()}
        missing = [str(value) for value in values if key(value) not in given]
        if missing:
            raise ValueError(f"options have no word for {label} {missing[0]!r}; its values are {values_text}")
        return [given[key(value)] for value in values]
    if len(options) != len(values):
        raise ValueError(
            f"options are {count(len(options), 'word')}, and {label} has {len(values)} values ({values_text}); give one word each"
        )
    if {word(value) for value in values} == set(options):
        return [word(value) for value in values]
    return list(options)
