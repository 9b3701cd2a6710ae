"""Tasks: the prompt and the options of a row of data, its right answer, and the train, dev and test rows.

A task is YAML: templates and expressions over the columns of a row (`templates.py`). Built-in tasks are in `builtin/`;
a user's task is a file of the same fields, and `columns.py` makes a task from the columns of a table.

The sentiment data is C. J. Hutto and E. Gilbert's (VADER, ICWSM 2014; MIT, notice in `sentiment/LICENSE`): sentences
with the mean of ten or more human scores in [-4, 4]. The label is the sign of the score; rows with abs(score) < 1 are
left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from zerograd.machine import yaml_files
from zerograd.settings.fields import check_fields, from_mapping
from zerograd.text.data.files import Row
from zerograd.text.data.templates import Expression, Template
from zerograd.text.data.values import is_empty, is_nan, key

_BUILTIN = resources.files("zerograd.text.data").joinpath("builtin")

TASKS = tuple(sorted(entry.name.removesuffix(".yaml") for entry in _BUILTIN.iterdir() if entry.name.endswith(".yaml")))


SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant",
}  # fmt: skip
"""The role of a message by its `from`, in the manner of ShareGPT."""

MAX_TASK_CHARACTERS = 1 << 20
"""The longest task, in characters."""


@dataclass(frozen=True)
class Example:
    """A row as a task reads it.

    options: the row's own options; empty where the task's options are common. labels: the indices of the right options;
    empty for a row without a label. answers: the right free answers. Training uses the first label or answer. where: the
    row's place, for messages.
    """

    id: str
    row: Mapping[str, Any]
    labels: tuple[int, ...] = ()
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    where: str = field(default="", compare=False)

    @property
    def label(self) -> int:
        """The index of the right option, which training uses."""
        return self.labels[0]


@dataclass(frozen=True)
class TaskSpec:
    """The fields of a task.

    Raises ValueError naming a field that is wrong.

    prompt: a template of the text before the answer; a masked model answers at `{{ mask }}`. messages: in place of a
    prompt, the column of a conversation whose last message is the answer. chat: put the prompt into the model's chat
    template as a user's turn.

    open: no answer is right; a reward scores what the model says. The last of the messages is then no answer.

    options: the possible continuations of the prompt, as templates; or {each: an expression of a list, option: a
    template with `{{ each }}`}. label: an expression of the right option's text, its index, or its value in `labels`;
    or of a list of these. labels: the label column's values, in the order of the options. answer: instead of options,
    an expression of the right answer, or of a list of right answers. before: text between prompt and answer. stop: text
    that ends an answer; the model's end token when empty.

    metric: the reported metric. cut: the column that loses its end when a prompt is too long; by default the row's
    longest text. where: an expression that is true for the rows to use. id: an expression of a row's name. data: a
    file, a folder, a hub id, or a file of the package. splits: the data's names of train, dev and test. rows: the most
    rows of each split. note: a line printed before training.
    """

    name: str
    prompt: str = ""
    messages: str = ""
    chat: bool = False
    open: bool = False
    options: tuple[str, ...] | Mapping[str, str] = ()
    label: str = ""
    labels: tuple[Any, ...] = ()
    answer: str = ""
    before: str = " "
    stop: str = ""
    metric: str = ""
    cut: str = ""
    where: str = ""
    id: str = ""
    data: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        check_fields(self, f"task {self.name}: ")
        if bool(self.prompt) == bool(self.messages):
            raise ValueError(f"task {self.name}: give either a prompt or messages")
        if self.open and (self.options or self.answer):
            raise ValueError(f"task {self.name} is open, and has options or an answer; leave them out")
        if not self.messages and not self.open and bool(self.options) == bool(self.answer):
            raise ValueError(f"task {self.name}: give either options or an answer")
        if isinstance(self.options, Mapping) and set(self.options) != {"each", "option"}:
            raise ValueError(f"task {self.name}: options of a list must have the fields each and option")
        if isinstance(self.options, tuple) and len(set(self.options)) < len(self.options):
            repeated = next(option for option in self.options if self.options.count(option) > 1)
            raise ValueError(f"task {self.name}: option {repeated!r} is there twice; give each once")
        if isinstance(self.options, tuple) and len(self.options) == 1:
            raise ValueError(f"task {self.name}: there is one option, {self.options[0]!r}; a choice needs two")
        if self.options and not self.label:
            raise ValueError(f"task {self.name} has options and no label; name the column of the right option")
        if self.labels and len(self.labels) != len(self.options):
            raise ValueError(f"task {self.name}: {len(self.labels)} labels for {len(self.options)} options; give one each")
        if self.prompt and not Template(self.prompt, "prompt").reads_columns:
            mend = "name a column in it, such as {{ text }}" if "{" not in self.prompt else "use two braces on each side"
            raise ValueError(f"prompt {self.prompt!r} has no placeholder, so every row would read the same; {mend}")

    @cached_property
    def kind(self) -> str:
        """ "options": the same options for every row; "choices": each row has its own; "answer": a free text; "open": a free
        text, and none is right.
        """
        if self.open:
            return "open"
        if not self.options:
            return "answer"
        return "options" if self.common else "choices"

    @cached_property
    def common(self) -> tuple[str, ...]:
        """The options, if they are the same for every row, else ()."""
        options = self.options if isinstance(self.options, tuple) else ()
        return () if any(Template(option, "option").names for option in options) else options

    def to_yaml(self) -> str:
        """The fields that differ from their defaults, as YAML."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
        return str(yaml_files.dump(plain, width=120))


class Task:
    """A task with its rows. train, dev, test: without a common prompt. notes: lines about duplicates and leaks."""

    def __init__(
        self,
        spec: TaskSpec,
        train: Sequence[Example] = (),
        dev: Sequence[Example] = (),
        test: Sequence[Example] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.options = spec.common
        self.train = tuple(train)
        self.dev = tuple(dev)
        self.test = tuple(test)
        self.notes = tuple(notes)

    def prompt(self, example: Example, mask: str = "", characters: int | None = None) -> str:
        """The prompt of an example. mask: the model's mask token. characters: the length to which the column that may
        be cut is cut; None leaves it whole.
        """
        row = dict(example.row)
        if characters is not None:
            name = self._shortenable_column(example)
            row[name] = str(row[name])[:characters]
        return self._prompt.render(row, mask=mask)

    def messages(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The conversation of a row: objects with role and content; those with `from` and `value` are brought to this form.

        Raises ValueError for anything else.
        """
        given = self._messages.value(row)
        turns = list(given) if isinstance(given, (list, tuple)) else []
        if not turns or not all(isinstance(turn, Mapping) for turn in turns):
            raise ValueError(f"{self.spec.messages} must be a list of objects with role and content")
        return [self._turn(turn) for turn in turns]

    def _turn(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(turn.get("content"), str) and isinstance(turn.get("role"), str):
            return dict(turn)
        speaker, text = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or not isinstance(text, str):
            raise ValueError(
                f"{self.spec.messages} must be a list of objects with role and content; one has {', '.join(turn) or 'nothing'}"
            )
        if speaker not in SPEAKERS:
            raise ValueError(f"{self.spec.messages} has a message from {speaker!r}; it must be one of {', '.join(SPEAKERS)}")
        return {"role": SPEAKERS[speaker], "content": text}

    def length(self, example: Example) -> int:
        """Characters of the column that may be cut; 0 if there is none."""
        name = self._shortenable_column(example)
        return len(str(example.row[name])) if name else 0

    def without_content(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """A row with `text` in place of the texts in the prompt; only in the column `cut` where the task names one."""
        names = {self.spec.cut} if self.spec.cut else self._prompt.columns(row)
        return {name: text if name in names and isinstance(value, str) else value for name, value in row.items()}

    def read(self, rows: Iterable[Row], where: str, labelled: bool = True) -> list[Example]:
        """Rows as examples.

        where: the name of the rows in messages. labelled: whether each row must have a right option or answer.
        Raises ValueError naming the first row that is wrong.
        """
        examples: list[Example] = []
        for number, row in enumerate(rows, 1):
            try:
                if self._where is None or self._where.value(row):
                    examples.append(dataclasses.replace(self._example(row, labelled), where=f"{where}: row {number}"))
            except ValueError as error:
                raise ValueError(f"{where}: row {number}: {error}") from None
        return examples

    def _example(self, row: Row, labelled: bool) -> Example:
        blank = Example("", row)
        if self.spec.messages:
            answers = self._conversation(row, labelled and not self.spec.open)
        else:
            self.prompt(blank)  # raises for a column that is missing
            missing = [name for name in sorted(self._prompt.printed_columns(row)) if is_empty(row[name])]
            if missing:
                raise ValueError(f"{missing[0]} is empty; fill it, or leave the row out")
            answers = self._answers(row) if self._answer is not None and labelled else ()
        options: tuple[str, ...] = ()
        labels: tuple[int, ...] = ()
        if self.spec.kind == "choices":
            options = self._choices(row)
        if self._label is not None and labelled:
            labels = self._labels(self._label.value(row), row)
        identity = str(self._id.value(row)) if self._id is not None else str(row.get("id", ""))
        return Example(identity or content_hash(row), row, labels, options, answers)

    def _conversation(self, row: Row, labelled: bool) -> tuple[str, ...]:
        messages = self.messages(row)
        if not labelled:
            return ()
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            problem = f"the last of {self.spec.messages} is the {messages[-1]['role']}'s"
            raise ValueError(f"{problem}; it must be the assistant's answer to a message before it")
        return (messages[-1]["content"],)

    def _answers(self, row: Row) -> tuple[str, ...]:
        assert self._answer is not None
        value = self._answer.value(row)
        values = value if isinstance(value, (list, tuple)) else [value]
        wrong = next((one for one in values if isinstance(one, (list, tuple, Mapping))), None)
        if wrong is not None:
            raise ValueError(f"{self.spec.answer} holds a {type(wrong).__name__}, and an answer is a text; choose a part of it")
        answers = tuple(str(one) for one in values if not is_nan(one) and one is not None)
        if not any(one.strip() for one in answers):
            raise ValueError(f"{self.spec.answer} is empty; fill it, or leave the row out")
        return answers

    def _choices(self, row: Row) -> tuple[str, ...]:
        if isinstance(self.spec.options, Mapping):
            values = self._each.value(row)
            options = tuple(self._options[0].render({**row, "each": value}) for value in values)
        else:
            options = tuple(option.render(row) for option in self._options)
        if len(set(options)) < 2:
            raise ValueError(f"its options are {', '.join(map(repr, options)) or 'none'}; a choice needs two that differ")
        return options

    def _labels(self, value: Any, row: Row) -> tuple[int, ...]:
        names = list(self._each.value(row)) if isinstance(self.spec.options, Mapping) else self._label_names
        keys = list(map(key, names)) if isinstance(self.spec.options, Mapping) else self._label_keys
        given = list(value) if isinstance(value, (list, tuple)) else [value]
        indices = []
        for one in given:
            if is_empty(one):
                raise ValueError(f"{self.spec.label} is empty; fill it, or leave the row out")
            if isinstance(one, (list, tuple, Mapping)):
                raise ValueError(f"{self.spec.label} holds a {type(one).__name__}, and a label is one value; choose a part of it")
            index = keys.index(key(one)) if key(one) in keys else None
            if index is not None and isinstance(self.spec.options, Mapping) and not isinstance(one, str):
                index = index if not isinstance(names[index], str) else None  # a number is the index of a text, not the text
            number = str(int(one)) if isinstance(one, bool) else key(one)
            if index is None and not self.spec.labels and number.isdigit():
                index = int(number) if int(number) < len(names) else None
            if index is None:
                raise ValueError(f"{self.spec.label} is {one!r}; it must be one of {', '.join(str(name) for name in names)}")
            indices.append(index)
        if not indices:
            raise ValueError(f"{self.spec.label} is an empty list; leave the row out")
        return tuple(dict.fromkeys(indices))

    def _shortenable_column(self, example: Example) -> str:
        if self.spec.cut:
            return self.spec.cut
        texts = {name: len(example.row[name]) for name in self._prompt.columns(example.row) if isinstance(example.row[name], str)}
        return max(sorted(texts), key=texts.__getitem__, default="")

    @cached_property
    def _prompt(self) -> Template:
        return Template(self.spec.prompt, "prompt")

    @cached_property
    def _options(self) -> list[Template]:
        given = [self.spec.options["option"]] if isinstance(self.spec.options, Mapping) else list(self.spec.options)
        return [Template(option, "option") for option in given]

    @cached_property
    def _each(self) -> Expression:
        assert isinstance(self.spec.options, Mapping)
        return Expression(self.spec.options["each"], "each")

    @cached_property
    def _messages(self) -> Expression:
        return Expression(self.spec.messages, "messages")

    @cached_property
    def _label_names(self) -> list[Any]:
        """What a label may be, in the order of the common options."""
        return list(self.spec.labels) or [option.strip() for option in self.spec.options]

    @cached_property
    def _label_keys(self) -> list[str]:
        return list(map(key, self._label_names))

    @cached_property
    def _label(self) -> Expression | None:
        return Expression(self.spec.label, "label") if self.spec.label else None

    @cached_property
    def _answer(self) -> Expression | None:
        return Expression(self.spec.answer, "answer") if self.spec.answer else None

    @cached_property
    def _where(self) -> Expression | None:
        return Expression(self.spec.where, "where") if self.spec.where else None

    @cached_property
    def _id(self) -> Expression | None:
        return Expression(self.spec.id, "id") if self.spec.id else None


def content_hash(row: Mapping[str, Any]) -> str:
    """A name for a row by its content."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:12]


def spec(name: str) -> TaskSpec:
    """The fields of a built-in task, or of a YAML file. Raises ValueError for any other name, and for an unknown field."""
    path = Path(name)
    if name in TASKS:
        text = _BUILTIN.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml"):
        if not path.exists():
            raise FileNotFoundError(f"task {name!r} is not there; give a YAML file, or one of {', '.join(TASKS)}")
        text = path.read_text(encoding="utf-8")
    else:
        raise ValueError(f"task {name!r} is not one of {', '.join(TASKS)}, nor a YAML file")
    return parse(text, path.stem)


def parse(text: str, name: str) -> TaskSpec:
    """The fields of a task from YAML. Raises ValueError naming what is wrong."""
    try:
        if len(text) > MAX_TASK_CHARACTERS or yaml_files.has_alias(text):
            raise ValueError(
                f"task {name} has an alias, or more than {MAX_TASK_CHARACTERS:,} characters; write a shorter task without aliases"
            )
        fields = yaml_files.load(text)
    except (yaml_files.YAMLError, RecursionError) as error:
        raise ValueError(f"task {name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"task {name} is a {type(fields).__name__}; it must be fields and values")
    given: dict[str, Any] = {"name": name} | fields
    return from_mapping(TaskSpec, given, f"task {name}")
