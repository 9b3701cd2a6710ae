"""The journal of a run: its header, and a check that an existing journal belongs to the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from zerograd.journal import Writer
from zerograd.journal.header import header_fields, require_base
from zerograd.text.data.tasks import Task
from zerograd.tune.folder import JOURNAL
from zerograd.tune.setup import Setup


def create_journal(setup: Setup) -> Writer:
    """Create the journal of a run, with everything in its header that a replay of the run needs."""
    return Writer.create(setup.folder / JOURNAL, _header(setup))


def require_same_run(header: Mapping[str, Any], setup: Setup) -> None:
    """Raises WrongBase or ValueError if a journal has another model, task or rows than the setup."""
    require_base(header, setup.identity, str(setup.folder / JOURNAL))
    if header["task"] != setup.task.spec.to_yaml():
        raise ValueError(f"task {setup.task.name} has changed since run {setup.folder} began; restore its prompt and options")
    if header["rows"] != _digest(setup.task):
        raise ValueError(f"the rows of task {setup.task.name} have changed since run {setup.folder} began; restore them")


def _header(setup: Setup) -> dict[str, Any]:
    settings = setup.settings
    of_run = {
        "settings": dataclasses.asdict(settings),
        "task": setup.task.spec.to_yaml(),
        "rows": _digest(setup.task),
        "cache": setup.scorer.cache is not None,
    }
    return header_fields(setup.optimizer, settings.method, settings.model, setup.identity, setup.lr) | of_run


def _digest(task: Task) -> str:
    """A hash of a task's rows, in order."""
    hashed = hashlib.blake2b(digest_size=16)
    for split in ("train", "dev", "test"):
        for example in getattr(task, split):
            hashed.update(json.dumps([split, example.row, example.labels, example.answers], default=str).encode())
    return hashed.hexdigest()
