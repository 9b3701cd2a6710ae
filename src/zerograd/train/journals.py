"""What can be done with a run's journal beside going on: weights from it, a look at it, two compared, a part of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerograd import journal
from zerograd.journal import Note, Reader, Record, Restore, Skip, Step, Writer
from zerograd.journal.format import to_bytes
from zerograd.spaces import weights
from zerograd.text.models import Loaded
from zerograd.train import environment, recording, runs
from zerograd.train.progress import Listener, Progress
from zerograd.train.settings import TuneSettings, from_mapping


@dataclass(frozen=True)
class Told:
    """A journal that was read whole. torn: bytes at its end that are the beginning of a record."""

    path: Path
    header: Mapping[str, Any]
    records: list[Record]
    torn: int

    @property
    def steps(self) -> list[Step | Skip]:
        """Its steps, in order."""
        return [record for record in self.records if isinstance(record, (Step, Skip))]


def find(name: str) -> Path:
    """A journal by its path, or by the folder of its run. Raises FileNotFoundError."""
    path = Path(name)
    path = path / recording.NAME if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"journal {path} is not there; give a journal, or the folder of a run")
    return path


def read(path: Path) -> Told:
    """A journal with all its records. Raises JournalDamaged, or ValueError for a header of another version."""
    header = recording.read_header(path)
    with path.open("rb") as file:
        reader = Reader(file, path.stat().st_size)
        records = list(reader)
    return Told(path, header, records, reader.torn)


def replayed(told: Told, base: str = "", at: int | None = None, device: str = "cpu", listen: Listener = lambda p: None) -> Loaded:
    """The model of a journal after `at` steps, or as the run left it.

    base: the model that the run began from; where it was then, when empty. Raises WrongBase when it is another.
    """
    environment.prepare()
    settings = from_mapping(TuneSettings, dict(told.header["settings"]) | {"device": device}, f"journal {told.path}")
    steps = journal.path(told.records, at)
    listen(Progress("loading the base", 0.0))
    loaded = runs.base(settings, base)
    recording.require_base(told.header, journal.identity(loaded.model), f"journal {told.path}")
    slots = weights.collect(loaded.model, runs.storage(settings))
    groups = journal.fit(slots, told.header["tensors"], told.header["groups"])
    family, seed = recording.family_of(told.header)
    journal.replay(slots, groups, family, seed, steps, lambda done: listen(Progress("replaying", done)))
    return loaded


def save(loaded: Loaded, out: Path) -> None:
    """Write a model, or the adapter that was trained, and its tokenizer to a folder that is not there yet."""
    partial = out.with_name(f".{out.name}.partial")
    loaded.model.save_pretrained(partial)
    loaded.tokenizer.save_pretrained(partial)
    partial.rename(out)


def cut(told: Told, at: int, out: Path) -> int:
    """Write the journal's beginning, until `at` steps were taken, as a journal of its own. Returns its bytes.

    Raises ValueError when there were not so many steps, or the file is there.
    """
    if at > len(told.steps):
        raise ValueError(f"step {at} is asked for, and the journal has {len(told.steps)} steps; ask for one that it has")
    if out.exists():
        raise ValueError(f"out is {out}, which is there; name another file")
    taken = itertools.accumulate(isinstance(record, (Step, Skip)) for record in told.records)
    writer = Writer.create(out, told.header)
    for record, count in zip(told.records, taken, strict=True):
        if count > at or (count == at and isinstance(record, (Restore, Note)) and "ended" in record.note):
            break
        writer.add(record)
    writer.close()
    return writer.offset


def parting(first: Told, second: Told) -> tuple[list[str], int | None]:
    """Where two runs part: (fields of the headers that differ, the first step that differs or that one run lacks)."""
    fields = sorted({*first.header, *second.header})
    differ = [name for name in fields if first.header.get(name) != second.header.get(name)]
    for number, (one, other) in enumerate(itertools.zip_longest(first.steps, second.steps)):
        if one is None or other is None or _bits(one) != _bits(other):
            return differ, number
    return differ, None


def _bits(record: Step | Skip) -> bytes:
    return to_bytes(record, 0)
