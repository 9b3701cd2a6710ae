"""Journals read whole: found by name, cut, and compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerograd.journal import Note, Reader, Record, Restore, Skip, Step, Writer
from zerograd.journal.format import to_bytes
from zerograd.journal.header import read_header
from zerograd.tune.folder import JOURNAL


@dataclass(frozen=True)
class ReadJournal:
    """A journal that was read whole. torn: bytes at its end that are the beginning of a record."""

    path: Path
    header: Mapping[str, Any]
    records: list[Record]
    torn: int

    @property
    def steps(self) -> list[Step | Skip]:
        """Its steps, in order."""
        return [record for record in self.records if isinstance(record, (Step, Skip))]


def find_journal(name: str) -> Path:
    """A journal by its path, or by the folder of its run. Raises FileNotFoundError."""
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
        raise ValueError(f"{path} was cut short: it has {reader.steps} of its {header['shipped']} steps; fetch it again")
    return ReadJournal(path, header, records, reader.torn)


def cut_journal(journal: ReadJournal, at: int, out: Path) -> int:
    """Write the journal's beginning, until `at` steps were taken, as a journal of its own. Returns its bytes.

    Raises ValueError where the journal has fewer steps, or the file exists.
    """
    if at > len(journal.steps):
        raise ValueError(f"step {at} is asked for, and the journal has {len(journal.steps)} steps; ask for one that it has")
    if out.exists():
        raise ValueError(f"out is {out}, which is there; name another file")
    counts = itertools.accumulate(isinstance(record, (Step, Skip)) for record in journal.records)
    writer = Writer.create(out, journal.header)
    for record, count in zip(journal.records, counts, strict=True):
        if count > at or (count == at and isinstance(record, (Restore, Note)) and "ended" in record.note):
            break
        writer.add(record)
    writer.close()
    return writer.offset


def first_difference(first: ReadJournal, second: ReadJournal) -> tuple[list[str], int | None]:
    """(the fields of the headers that differ, the first step that differs or that one journal lacks; None where there is none)."""
    names = sorted({*first.header, *second.header})
    fields = [name for name in names if first.header.get(name) != second.header.get(name)]
    for number, (one, other) in enumerate(itertools.zip_longest(first.steps, second.steps)):
        if one is None or other is None or to_bytes(one, 0) != to_bytes(other, 0):
            return fields, number
    return fields, None
