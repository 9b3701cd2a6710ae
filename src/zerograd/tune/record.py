"""The journal of a run: its beginning, and whether a journal that is there is of the same run."""

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
    """Create the journal of a run, with all in its header that it takes to begin the run again."""
    return Writer.create(setup.folder / JOURNAL, _header(setup))


def require_same_run(header: Mapping[str, Any], setup: Setup) -> None:
    """Raises WrongBase or ValueError where a journal is of another model, another task or other rows than a setup."""
    require_base(header, setup.identity, str(setup.folder / JOURNAL))
    if header["task"] != setup.task.spec.to_yaml():
        raise ValueError(f"task {setup.task.name} is not as run {setup.folder} began with it; give it back its prompt and options")
    if header["rows"] != _digest(setup.task):
        raise ValueError(f"the rows of task {setup.task.name} are not those that run {setup.folder} began with")


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
    """A hash of a task's rows, in the order in which training sees them."""
    hashed = hashlib.blake2b(digest_size=16)
    for split in ("train", "dev", "test"):
        for example in getattr(task, split):
            hashed.update(json.dumps([split, example.row, example.labels, example.answers], default=str).encode())
    return hashed.hexdigest()
