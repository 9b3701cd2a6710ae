"""Complete journals: find, read, cut and compare."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerograd.journal import Note, Reader, Record, Restore, Skip, Step, Writer
from zerograd.journal.header import read_header
from zerograd.journal.steps import encode
from zerograd.tune.folder import JOURNAL


@dataclass(frozen=True)
class ReadJournal:
    """A journal with all its records. torn: bytes of an incomplete record at its end."""

    path: Path
    header: Mapping[str, Any]
    records: list[Record]
    torn: int

    @property
    def steps(self) -> list[Step | Skip]:
        """Its steps, in order."""
        return [record for record in self.records if isinstance(record, (Step, Skip))]


def find_journal(name: str) -> Path:
    """The path of a journal, given as that path or as its run's folder. Raises FileNotFoundError."""
    path = Path(name)
    path = path / JOURNAL if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"journal {path} is not there; give a journal, or the folder of a run")
    return path


def read_journal(path: Path) -> ReadJournal:
    """A journal with all its records. Raises JournalDamaged, or ValueError for a header of another version."""
    header = read_header(path)
    with path.open("rb") as file:
        reader = Reader(file, path.stat().st_size)
        records = list(reader)
    if "shipped" in header and (reader.torn or reader.steps != header["shipped"] or not isinstance(records[-1], Note)):
        raise ValueError(f"{path} is incomplete: it has {reader.steps} of its {header['shipped']} steps; fetch it again")
    return ReadJournal(path, header, records, reader.torn)


def cut_journal(journal: ReadJournal, at: int, out: Path) -> int:
    """Write the first `at` steps of a journal as a new journal. Returns its size in bytes.

    Raises ValueError if the journal has fewer steps, or the file exists.
    """
    if at > len(journal.steps):
        raise ValueError(f"at is {at}, and the journal has {len(journal.steps)} steps; give at most that")
    if out.exists():
        raise ValueError(f"out is {out}, which exists; name another file")
    counts = itertools.accumulate(isinstance(record, (Step, Skip)) for record in journal.records)
    writer = Writer.create(out, journal.header)
    for record, count in zip(journal.records, counts, strict=True):
        if count > at or (count == at and isinstance(record, (Restore, Note)) and "ended" in record.note):
            break
        writer.add(record)
    writer.close()
    return writer.offset


def first_difference(first: ReadJournal, second: ReadJournal) -> tuple[list[str], int | None]:
    """(names of header fields that differ, number of the first step that differs or that only one journal has; None if
    all steps agree).
    """
    names = sorted({*first.header, *second.header})
    fields = [name for name in names if first.header.get(name) != second.header.get(name)]
    for number, (one, other) in enumerate(itertools.zip_longest(first.steps, second.steps)):
        if one is None or other is None or encode(one) != encode(other):
            return fields, number
    return fields, None
