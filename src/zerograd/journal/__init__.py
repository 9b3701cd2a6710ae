"""The append-only record that a run is, and the way back from it to weights."""

from zerograd.journal.format import JournalDamaged, Note, Reader, Record, Restore
from zerograd.journal.identity import WrongBase, fit, identity, table
from zerograd.journal.replaying import path, replay
from zerograd.journal.writer import Writer
from zerograd.machine.files import FileLocked as JournalLocked
from zerograd.update.apply import Skip, Step

__all__ = [
    "JournalDamaged",
    "JournalLocked",
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
