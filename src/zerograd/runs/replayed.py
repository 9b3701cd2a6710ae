"""Models rebuilt from a journal and its base model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from zerograd import journal
from zerograd.journal import Step
from zerograd.journal.header import recorded_memory, recorded_method, require_base
from zerograd.machine import environment
from zerograd.machine.files import new_folder
from zerograd.quantised.models import base_of as quantised_base_of
from zerograd.quantised.write import write
from zerograd.runs.journals import ReadJournal, find_journal, read_journal
from zerograd.spaces import Space, collect
from zerograd.text.data import tasks
from zerograd.text.models import loading, schemes
from zerograd.text.models.loading import Loaded
from zerograd.tune.base_model import base_model, precision_of
from zerograd.tune.folder import JOURNAL
from zerograd.tune.progress import Listener, Progress, ignore_progress
from zerograd.tune.results import write_model
from zerograd.tune.settings import TuneSettings, from_record

HIGHEST_RANK = 4096
"""The highest rank and the most virtual tokens of a run, which bound the memory that a malicious file can ask for."""

MAX_FACTOR_VALUES = 1 << 29
"""The most numbers in the factors of a step's directions for a tensor: 2 GB."""


def load(path: str, base: str = "", device: str = "cpu") -> Loaded:
    """A tuned model from its shipped file, its journal, its run's folder, or the .gguf file that a packed run has written: an
    object with `model` and `tokenizer`.

    base: the base model; by default the one named in the journal. A .gguf file needs none, and its matrices stay packed.
    Raises FileNotFoundError, ValueError for another base or a damaged file, or ModuleNotFoundError without the extra
    `text`.
    """
    place = Path(path)
    if place.suffix == ".gguf" or (place.is_dir() and not (place / JOURNAL).exists() and loading.files_of(place)):
        environment.prepare()
        return loading.load(path, device=device, packing=loading.FROZEN)
    return replayed(read_journal(find_journal(path)), base, device=device)


def replayed(
    source: ReadJournal, base: str = "", at: int | None = None, device: str = "cpu", listen: Listener = ignore_progress
) -> Loaded:
    """The model of a journal after `at` steps, by default at the end of its run.

    base: the base model; by default the one named in the journal.
    Raises WrongBase if its weights differ.
    """
    return rebuilt(source, base, at, device, listen)[0]


def rebuilt(
    source: ReadJournal, base: str = "", at: int | None = None, device: str = "cpu", listen: Listener = ignore_progress
) -> tuple[Loaded, list[Space]]:
    """As `replayed`, with the spaces of the trained tensors, which know their values exactly."""
    steps = journal.path(source.records, at)
    loaded, spaces, groups = base_of(source, base, device, listen)
    memory = recorded_memory(source.header, spaces, groups)
    journal.replay(memory, steps, lambda done: listen(Progress("replaying", done)))
    return loaded, spaces


def base_of(source: ReadJournal, base: str, device: str, listen: Listener) -> tuple[Loaded, list[Space], list[int]]:
    """(base model, spaces of the trained tensors, parameter group of each space). Raises WrongBase."""
    environment.prepare()
    settings = dataclasses.replace(settings_of(source), device=device)
    for name in ("lora_rank", "virtual_tokens"):
        if getattr(settings, name) > HIGHEST_RANK:
            raise ValueError(f"journal {source.path} has {name} {getattr(settings, name):,}, more than {HIGHEST_RANK:,}")
    if "shipped" in source.header and not base and settings.model != loading.DEMO:
        raise ValueError(f"{source.path} needs its base model {settings.model}; give its path with --base")
    trains_own = settings.scheme not in schemes.ADAPTERS
    listen(Progress("loading the base", 0.0))
    labels = tasks.parse(str(source.header.get("task")), source.path.stem).common if settings.head == "classifier" else ()
    table = source.header.get("tensors")
    rows = table if isinstance(table, list) else []
    # the table names the trained tensors; a pattern of a file is never evaluated
    names = {str(row.get("name")) for row in rows if isinstance(row, dict)} if trains_own else None
    loaded = base_model(settings, base, labels, names)
    require_base(source.header, journal.identity(loaded.model), f"journal {source.path}")
    spaces = collect(loaded.model, precision_of(settings))
    method, _ = recorded_method(source.header)
    _require_bounded(source, max(method.draw.rank_in(space) for space in spaces), spaces)
    return loaded, spaces, journal.fit(spaces, table, source.header["groups"])


def settings_of(source: ReadJournal) -> TuneSettings:
    """The settings of a journal's run. Raises ValueError for a journal without settings, such as a plain optimiser's."""
    fields = source.header.get("settings")
    if not isinstance(fields, dict):
        raise ValueError(f"journal {source.path} has no settings in its header, so its model cannot be rebuilt")
    return from_record(fields, f"journal {source.path}")


def save_model(loaded: Loaded, spaces: Sequence[Space], out: Path, settings: TuneSettings) -> None:
    """Write a model, or its trained adapter, and the tokenizer to a new folder; a packed model, or a file of that name, as .gguf.

    Raises ValueError where `out` is a .gguf file and the run's base was not packed.
    """
    if out.suffix == ".gguf":
        if quantised_base_of(loaded.model) is None or settings.scheme in schemes.ADAPTERS:
            raise ValueError(f"out is {out}, and the run trained no packed model; give a folder")
        write(loaded.model, spaces, out, settings.gguf_type)
        return
    with new_folder(out) as folder:
        write_model(loaded.model, loaded.tokenizer, spaces, folder, settings)


def _require_bounded(source: ReadJournal, rank: int, spaces: list[Space]) -> None:
    """Raises ValueError if the factors of a step's directions would exceed MAX_FACTOR_VALUES."""
    most = max((len(step.coefficients) for step in source.steps if isinstance(step, Step)), default=0)
    largest = max(space.view[0] * (space.view[1] + space.view[2]) for space in spaces)
    if most * rank * largest > MAX_FACTOR_VALUES:
        raise ValueError(f"journal {source.path} has a step of {most:,} directions of rank {rank:,}, more than fit in memory")
