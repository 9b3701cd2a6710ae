"""The task that a table's columns suggest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zerograd.machine.format import count
from zerograd.text.data.sources import Row
from zerograd.text.data.tasks import TaskSpec

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
    if not named and {"prompt", "completion"} <= set(columns):
        return TaskSpec(name, prompt="{{ prompt }}", answer="completion", before="")
    label = label or "label"
    text = text or ("" if template else "text")
    for given, flag in ((text, "text"), (label, "label")):
        if given and given not in columns:
            mend = f"name one with --{flag}"
            raise ValueError(f"{flag} is {given!r}, which is not a column of {name}; the columns are {', '.join(columns)}; {mend}")
    empty = next((number for number, row in enumerate(rows, 1) if row.get(label) in (None, "")), None)
    if empty is not None:
        raise ValueError(f"{name}: row {empty}: {label} is empty; fill it, or leave the row out")
    value_of = {str(row[label]).strip(): row[label] for row in reversed(rows)}  # "1" and 1 are one value
    values: list[Any] = [value_of[name] for name in sorted(value_of)]
    if len(values) > MOST_LABELS:
        mend = "for free answers name the columns prompt and completion, or write a task with `answer`"
        raise ValueError(f"label {label!r} has {len(values)} different values, more than {MOST_LABELS}; {mend}")
    words = _words(values, options, label)
    reference = text if text.isidentifier() else f"row[{text!r}]"
    title = label.replace("_", " ").strip().capitalize()
    return TaskSpec(
        name,
        prompt=template or f"{{{{ {reference} }}}}\n{title}:",
        options=tuple(f" {word}" for word in words),
        label=label,
        labels=tuple(values),
        cut=text if text and (not template or reference in template) else "",
    )


def _words(values: Sequence[Any], options: Sequence[str], label: str) -> list[str]:
    """The word of each label."""
    values_text = ", ".join(map(str, values))
    if not options:
        return [str(value).strip() for value in values]
    if all("=" in option for option in options):
        given = dict(option.split("=", 1) for option in options)
        missing = [str(value) for value in values if str(value) not in given]
        if missing:
            raise ValueError(f"options have no word for {label} {missing[0]!r}; its values are {values_text}")
        return [given[str(value)] for value in values]
    if len(options) != len(values):
        raise ValueError(
            f"options are {count(len(options), 'word')}, and {label} has {len(values)} values ({values_text}); give one word each"
        )
    if {str(value) for value in values} == set(options):
        return [str(value) for value in values]
    return list(options)
