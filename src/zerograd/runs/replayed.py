"""Models made again from a journal and the base that its run began from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from zerograd import journal
from zerograd.journal import Step
from zerograd.journal.header import method_of, require_base
from zerograd.machine import environment
from zerograd.machine.files import new_folder
from zerograd.runs.journals import ReadJournal, find_journal, read_journal
from zerograd.spaces import weights
from zerograd.text.models import loading, schemes
from zerograd.text.models.loading import Loaded
from zerograd.tune.base_model import base_model, storage_of
from zerograd.tune.progress import Listener, Progress, ignore_progress
from zerograd.tune.settings import TuneSettings, from_record

HIGHEST_RANK = 4096
"""The highest rank, and the most virtual tokens, of a run: memory is taken by these before a check can tell that a file is no
run's."""

MOST_FACTORS = 1 << 29
"""The most numbers in the factors of a step's directions in a tensor: 2 GB."""


def load(path: str, base: str = "", device: str = "cpu") -> Loaded:
    """A tuned model from its shipped file, its journal, or the folder of its run: an object with `model` and `tokenizer`.

    base: the model that the run began from, where it is now; where it was then, when empty.
    Raises FileNotFoundError, ValueError for another base or a damaged file, or ModuleNotFoundError without the extra `text`.
    """
    return replayed(read_journal(find_journal(path)), base, device=device)


def replayed(
    source: ReadJournal, base: str = "", at: int | None = None, device: str = "cpu", listen: Listener = ignore_progress
) -> Loaded:
    """The model of a journal after `at` steps, or as the run left it.

    base: the model that the run began from; where it was then, when empty. Raises WrongBase when it is another.
    """
    steps = journal.path(source.records, at)
    loaded, slots, groups = base_of(source, base, device, listen)
    family, state, seed = method_of(source.header)
    state.begin(slots, source.header["groups"])
    family.begin(slots)
    journal.replay(slots, groups, family, state, seed, steps, lambda done: listen(Progress("replaying", done)))
    return loaded


def base_of(source: ReadJournal, base: str, device: str, listen: Listener) -> tuple[Loaded, list[weights.Slot], list[int]]:
    """What a run began from: (its model, the tensors that it trained, the parameter group of each). Raises WrongBase."""
    environment.prepare()
    settings = dataclasses.replace(settings_of(source), device=device)
    for name in ("lora_rank", "virtual_tokens"):
        if getattr(settings, name) > HIGHEST_RANK:
            raise ValueError(f"journal {source.path} has {name} {getattr(settings, name):,}, more than {HIGHEST_RANK:,}")
    if "shipped" in source.header and not base and settings.model != loading.DEMO:
        raise ValueError(f"{source.path} is of base {settings.model}; name where that is with --base")
    trains_own = settings.scheme not in schemes.ADAPTERS
    listen(Progress("loading the base", 0.0))
    every = dataclasses.replace(settings, scheme="full", layers=0, pattern="")
    loaded = base_model(every if trains_own else settings, base)
    require_base(source.header, journal.identity(loaded.model), f"journal {source.path}")
    table = source.header.get("tensors")
    if trains_own and isinstance(table, list):  # the table names what was trained: no pattern of a file is searched for
        names = {str(row.get("name")) for row in table if isinstance(row, dict)}
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad_(name in names)
    slots = weights.collect(loaded.model, storage_of(settings))
    _require_bounded(source, method_of(source.header)[0].rank, slots)
    return loaded, slots, journal.fit(slots, table, source.header["groups"])


def settings_of(source: ReadJournal) -> TuneSettings:
    """The settings of a journal's run. Raises ValueError where its header has none, as the journal of a plain optimiser."""
    fields = source.header.get("settings")
    if not isinstance(fields, dict):
        raise ValueError(f"journal {source.path} has no settings in its header, so that no model can be made of it")
    return from_record(fields, f"journal {source.path}")


def save_model(loaded: Loaded, out: Path) -> None:
    """Write a model, or the adapter that was trained, and its tokenizer to a folder that is not there yet."""
    with new_folder(out) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)


def _require_bounded(source: ReadJournal, rank: int, slots: list[weights.Slot]) -> None:
    """Raises ValueError where the factors of a step's directions would be larger than any run's."""
    most = max((step.multipliers.shape[1] for step in source.steps if isinstance(step, Step)), default=0)
    largest = max(slot.view[0] * (slot.view[1] + slot.view[2]) for slot in slots)
    if most * rank * largest > MOST_FACTORS:
        raise ValueError(f"journal {source.path} has a step of {most:,} directions of rank {rank:,}, more than can be held")
