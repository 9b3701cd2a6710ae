"""Writing a journal: every record is in the system's hands before the update that it describes, and on the disk within a second."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zerograd.journal.format import Note, Reader, Record, Restore, finite, to_bytes, to_header
from zerograd.machine.files import lock, sync_folder, write_all

SYNC_SECONDS = 1.0
"""What a loss of power may cost, at most."""


class Writer:
    """A journal that is being written, and locked while it is.

    Make one with `create` or `reopen`. offset, crc: of what was written so far.
    """

    def __init__(self, path: Path, handle: int, offset: int, crc: int) -> None:
        self.path = path
        self.offset = offset
        self.crc = crc
        self._handle = handle
        self._synced = time.monotonic()

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Writer:
        """Begin a journal in a new file. Raises FileExistsError, FileLocked, or OSError when it cannot be written."""
        made = to_header(header)
        if path.exists():
            raise FileExistsError(f"{path} is there; name another file")
        partial = path.with_name(f".{path.name}.partial")
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o644)
        try:
            lock(handle, path)
            write_all(handle, made)
            os.fsync(handle)
            partial.rename(path)  # a journal has a whole header, or is not there
            sync_folder(path.parent)
        except BaseException:
            os.close(handle)
            partial.unlink(missing_ok=True)
            raise
        return cls(path, handle, len(made), int.from_bytes(made[-4:], "little"))

    @classmethod
    def reopen(
        cls, path: Path, each: Callable[[Record], None], marks: list[tuple[int, int]] | None = None
    ) -> tuple[Writer, Mapping[str, Any], int]:
        """Go on with a journal. each: hears of its records. marks: is given (offset, crc) of the header's and each record's end.

        Returns (writer, header, bytes of a torn record that were cut).

        Raises FileLocked, JournalDamaged, or OSError.
        """
        handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            lock(handle, path)
            with os.fdopen(os.dup(handle), "rb") as file:
                reader = Reader(file, os.fstat(handle).st_size)
                found = [(reader.offset, reader.crc)]
                for record in reader:
                    each(record)
                    found.append((reader.offset, reader.crc))
                if marks is not None:
                    marks += found
            if reader.torn:
                os.ftruncate(handle, reader.offset)
                os.fsync(handle)
            os.lseek(handle, reader.offset, os.SEEK_SET)
        except BaseException:
            os.close(handle)
            raise
        return cls(path, handle, reader.offset, reader.crc), reader.header, reader.torn

    def add(self, record: Record) -> None:
        """Append a record. Raises OSError when it cannot be written; the journal is then what it was before."""
        made = to_bytes(record, self.crc)
        try:
            write_all(self._handle, made)
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self.sync()
        except BaseException:  # an interrupt too: half a record is none, nor is one that may not be on the disk
            for undo in (os.ftruncate, lambda handle, offset: os.lseek(handle, offset, os.SEEK_SET)):
                with contextlib.suppress(OSError):
                    undo(self._handle, self.offset)
            raise
        self.offset += len(made)
        self.crc = int.from_bytes(made[-4:], "little")

    def restore(self, step: int, note: Mapping[str, Any]) -> None:
        """Append that the weights go back to those after some steps, and make it durable."""
        self.add(Restore(step, finite(note)))
        self.sync()

    def note(self, note: Mapping[str, Any]) -> None:
        """Append what is to be known."""
        self.add(Note(finite(note)))

    def sync(self) -> None:
        """Have everything on the disk: before what depends on it is, or is reported final."""
        os.fsync(self._handle)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync, and let others write."""
        try:
            self.sync()
        finally:
            os.close(self._handle)
