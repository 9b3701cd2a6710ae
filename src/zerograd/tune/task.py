"""The task of settings, with its rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from zerograd.rewards.task import task_of_rewards
from zerograd.text.data import columns, order, splits, tasks
from zerograd.text.data.sources import Source
from zerograd.text.data.tasks import Example, Task
from zerograd.tune.settings import TaskSettings, TuneSettings

DEMONSTRATIONS_EPOCH = 2**32 - 1
"""The epoch whose order chooses demonstrations; training does not reach it."""


def task_of(settings: TaskSettings) -> Task:
    """The task that settings describe, with its rows. Raises ValueError or FileNotFoundError."""
    sources = sources_of(settings)
    if isinstance(settings, TuneSettings) and settings.reward:
        return task_of_rewards(settings.reward, sources, settings.chat, settings.dev, settings.test)
    if settings.task:
        spec = tasks.spec(settings.task)
    else:
        rows = [row for source in sources for row in source.read({})["train"]]
        name = Path(sources[0].name).stem
        spec = columns.from_rows(name, rows, settings.text, settings.label, settings.template, settings.options)
    if settings.chat:
        spec = dataclasses.replace(spec, chat=True)
    return splits.with_rows(spec, sources, settings.dev, settings.test)


def sources_of(settings: TaskSettings) -> list[Source]:
    """The sources of training rows. Raises ValueError for a source whose weight is not a number above 0."""
    return [Source.parse(given) for given in settings.data]


def demonstrations(task: Task, count: int, seed: int) -> list[Example]:
    """Training rows for in-context learning, a function of the seed."""
    return [task.train[i] for i in order.shuffled(len(task.train), seed, DEMONSTRATIONS_EPOCH)[:count]]
