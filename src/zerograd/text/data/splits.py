"""A task with its rows, read and split into train, dev and test; duplicates and leaks between splits are removed."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from zerograd.text.data import sources, tasks
from zerograd.text.data.files import Row
from zerograd.text.data.sources import Source
from zerograd.text.data.tasks import Example, Task, TaskSpec, content_hash


def load(name: str) -> Task:
    """A built-in task, or a YAML file's, with its own data. Raises ValueError or FileNotFoundError."""
    return with_rows(tasks.spec(name))


def with_rows(given: TaskSpec, training: Sequence[Source] = (), dev: str = "", test: str = "") -> Task:
    """A task with the rows of its own data, or of given sources.

    training: sources of training rows, which replace the task's own data. dev, test: sources of these splits; a split
    without one is cut from the training rows.
    Raises ValueError or FileNotFoundError.
    """
    task = Task(given)
    if not training and not given.data:
        raise ValueError(f"task {given.name} has no data of its own; give --data")
    splits: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    notes = [given.note.strip()] if given.note else []
    for source in training or [Source(given.data)]:
        by_split = _packaged(source.name) if not training else None
        by_split = by_split or source.read(given.splits)
        notes += source.notes
        for split, rows in by_split.items():
            examples = task.read(rows, f"data {source.name}" + (f", {split}" if len(by_split) > 1 else ""))
            splits[split] += _repeated(examples, source.weight) if split == "train" else examples
    for split, name in (("dev", dev), ("test", test)):
        if name:
            splits[split] = task.read(sources.split(name, split, given.splits, notes), f"{split} {name}")
    splits = _with_ids_of_their_own(splits, notes)
    return Task(given, *_split(task, splits, notes), notes)


def of_rows(given: TaskSpec, rows: Mapping[str, Sequence[Row]]) -> Task:
    """A task with rows that are at hand, by split; a split without any is cut from the training rows. Raises ValueError."""
    task, notes = Task(given), [given.note.strip()] if given.note else []
    splits = {split: task.read(rows.get(split, ()), f"{given.name}, {split}") for split in ("train", "dev", "test")}
    splits = _with_ids_of_their_own(splits, notes)
    return Task(given, *_split(task, splits, notes), notes)


def is_packaged(name: str) -> bool:
    """Whether rows of this name come with the package."""
    file = resources.files("zerograd.text.data").joinpath(name)
    return name.endswith(".jsonl.gz") and ".." not in name and not name.startswith("/") and file.is_file()


def _packaged(name: str) -> dict[str, list[Row]] | None:
    """Rows that come with the package, or None."""
    if not is_packaged(name):
        return None
    file = resources.files("zerograd.text.data").joinpath(name)
    return {"train": [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]}


def _repeated(examples: Sequence[Example], weight: float) -> list[Example]:
    """Each example int(weight) times, and the fractional part's share of the examples once more."""
    whole, share = int(weight), weight % 1
    once_more = [e for e in examples if share and int.from_bytes(_hash(e)[:4]) < share * 2**32]
    return [*(list(examples) * whole), *once_more]


def _with_ids_of_their_own(splits: dict[str, list[Example]], notes: list[str]) -> dict[str, list[Example]]:
    """The rows, with the content added to an id that different rows share: it names none of them. notes: takes a line."""
    by_id: dict[str, dict[int, Example]] = {}
    for rows in splits.values():
        for e in rows:
            by_id.setdefault(e.id, {})[id(e)] = e
    renamed: dict[int, Example] = {}
    for name, sharing in by_id.items():
        contents = {key: content_hash(e.row) for key, e in sharing.items()} if len(sharing) > 1 else {}
        if len(set(contents.values())) > 1:
            renamed |= {key: dataclasses.replace(e, id=f"{name}-{contents[key]}") for key, e in sharing.items()}
    if renamed:
        notes.append(f"{len(renamed):,} rows share their id with a row that differs; they are split by id and content")
    return {split: [renamed.get(id(e), e) for e in rows] for split, rows in splits.items()}


def _cut(rows: list[Example], size: int) -> tuple[list[Example], list[Example], bool]:
    """(the first rows, the others, whether it was not so simple). Where one side would hold a single label, or lack one that can be
    on both sides, the first row of each label is on one side and its last on the other.
    """
    labels = Counter(e.labels[:1] for e in rows)
    taken, rest = rows[:size], rows[size:]
    one_label = len(labels) > 1 and size > 1 and len({e.labels[:1] for e in taken}) == 1
    lacking = {label for label, count in labels.items() if count > 1} - {e.labels[:1] for e in rest}
    if not one_label and not lacking:
        return taken, rest, False
    first = {e.labels[:1]: e.id for e in reversed(rows) if labels[e.labels[:1]] > 1}
    last = {e.labels[:1]: e.id for e in rows}
    here = list(first.values())[:size]
    here += [e.id for e in rows if e.id not in here and e.id != last[e.labels[:1]]][: size - len(here)]
    return [e for e in rows if e.id in here], [e for e in rows if e.id not in here], True


def _hash(example: Example) -> bytes:
    return hashlib.sha256(example.id.encode()).digest()


def _split(task: Task, splits: dict[str, list[Example]], notes: list[str]) -> tuple[list[Example], list[Example], list[Example]]:
    """The train, dev and test rows, without duplicates; a missing split is cut from train by the hash of row ids.

    A row of a later split is removed from the earlier ones. notes: takes a line about each removal.
    """
    keys = {id(e): _key(task, e) for rows in splits.values() for e in rows}
    rows = {}
    for split in ("train", "dev", "test"):
        unique = {keys[id(e)]: e for e in splits[split]}
        labels: dict[Any, set[tuple[int, ...]]] = {}
        for e in splits[split]:
            labels.setdefault(keys[id(e)], set()).add(e.labels)
        conflicting = sum(len(found) > 1 for found in labels.values())
        if conflicting:
            notes.append(f"{split}: texts with several different labels: {conflicting:,}; the last label is used")
        duplicates = len({id(e) for e in splits[split]}) - len(unique)
        if duplicates:
            notes.append(f"{split}: {duplicates:,} of {len(unique) + duplicates:,} rows repeat another row; one of each is used")
        rows[split] = sorted(unique.values(), key=_hash)
    limits = task.spec.rows
    count = len(rows["train"])
    for split, share, bound in (("test", 5, 2000), ("dev", 10, 500)):
        if not rows[split]:
            size = limits.get(split, min(bound, max(1, count // share)))
            size = size if size <= count // 2 else max(1, count // share)
            rows[split], rows["train"], chosen = (
                _cut(rows["train"], size) if task.spec.kind == "options" else (rows["train"][:size], rows["train"][size:], False)
            )
            if chosen:
                notes.append(f"{split}: cut from the training rows so that both have every label")
        rows[split] = rows[split][: limits.get(split, len(rows[split]))]
    for earlier, later in (("dev", "test"), ("train", "dev"), ("train", "test")):
        later_keys = {keys[id(e)] for e in rows[later]}
        leaking = sum(keys[id(e)] in later_keys for e in rows[earlier])
        if leaking:
            notes.append(f"{leaking:,} rows of {earlier} are also in {later}; they are removed from {earlier}")
            rows[earlier] = [e for e in rows[earlier] if keys[id(e)] not in later_keys]
    rows["train"] = rows["train"][: limits.get("train", len(rows["train"]))]
    for split, found in rows.items():
        if not found:
            raise ValueError(f"task {task.name} has no {split} rows; give it some")
        if split != "train" and task.options and len(found) > 1 and len({e.labels[0] for e in found}) == 1:
            notes.append(f"{split}: every row has the label {task.options[found[0].label].strip()}")
    repeats = Counter(id(e) for e in splits["train"])  # from the weight of an example's source
    return [e for e in rows["train"] for _ in range(repeats[id(e)])], rows["dev"], rows["test"]


def _key(task: Task, example: Example) -> Any:
    """The identity of a row for duplicates: its prompt in lower case, and its own options."""
    if task.spec.messages:
        return json.dumps(task.messages(example.row), sort_keys=True)
    return task.prompt(example).strip().lower(), example.options
