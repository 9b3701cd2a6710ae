"""The append-only record that a run is, and the way back from it to weights."""

from zerograd.errors import FileLocked, JournalDamaged, WrongBase
from zerograd.journal.identity import fit, identity, table
from zerograd.journal.replay import path, replay
from zerograd.journal.steps import Note, Reader, Record, Restore, Writer
from zerograd.update import Skip, Step

__all__ = [
    "FileLocked",
    "JournalDamaged",
    "Note",
    "Reader",
    "Record",
    "Restore",
    "Skip",
    "Step",
    "Writer",
    "WrongBase",
    "fit",
    "identity",
    "path",
    "replay",
    "table",
]
