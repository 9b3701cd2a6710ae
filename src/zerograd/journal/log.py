"""An append-only log: a header, then checksummed records (docs/journal.md). What a record means is not known here.

    file     magic "zgj1"   length u32   header (JSON in UTF-8, or zlib of it)   crc u32
    record   length u32     kind u8      check u8               payload (length bytes)   crc u32

All numbers are little-endian. A crc is CRC-32 over everything before it, from the file's first byte on, so that a
record which is changed, missing or moved does not fit. check is the exclusive or of the bytes of length and kind and 0x5A, so
that a changed length is not taken for a record that was cut short.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from zerograd.errors import JournalDamaged
from zerograd.machine.files import lock, sync_folder, write_all

MAGIC = b"zgj1"

LARGEST = 64 << 20
"""Bytes of a header or record, at most; a length beyond is damage."""

COMPRESSED_FROM = 6144
"""Bytes of a header from which it is compressed: a long table of tensors repeats itself, and would outgrow a run's steps."""

SYNC_SECONDS = 1.0
"""Seconds of records that a loss of power may cost, at most."""


def header_bytes(fields: Mapping[str, Any]) -> bytes:
    """The first bytes of a log, its crc included. Raises ValueError for a header that is too long."""
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    if len(text) > LARGEST:
        raise ValueError(f"the header has {len(text):,} bytes, more than {LARGEST:,}")
    if len(text) >= COMPRESSED_FROM:
        text = zlib.compress(text, 9)
    made = MAGIC + struct.pack("<I", len(text)) + text
    return made + struct.pack("<I", zlib.crc32(made))


def record_bytes(kind: int, payload: bytes, crc: int) -> bytes:
    """A record behind one whose crc is given, its own included. kind: 1 to 255.

    Raises ValueError for a payload that is too long.
    """
    if len(payload) > LARGEST:
        raise ValueError(f"a record has {len(payload):,} bytes, more than {LARGEST:,}")
    head = struct.pack("<IB", len(payload), kind)
    made = head + bytes([_check(head)]) + payload
    return made + struct.pack("<I", zlib.crc32(made, crc))


@dataclass
class LogReader:
    """Reads a log from its beginning, one record at a time; no length is trusted before it is seen to fit the file.

    file, size: the log and its bytes. kinds: of records that there may be, 1 to kinds. header: its fields. crc, offset:
    after the records that were read. torn: bytes at the end that begin a record, known when all others were read.
    Raises JournalDamaged.
    """

    file: BinaryIO
    size: int
    kinds: int = 255

    def __post_init__(self) -> None:
        self.offset = self.crc = self.torn = 0
        start = self.file.read(8)
        if len(start) < 8 or start[:4] != MAGIC:
            raise JournalDamaged("this is no journal: it does not begin with zgj1 and a header", 0)
        (length,) = struct.unpack("<I", start[4:])
        if length > min(LARGEST, self.size - 12):
            raise JournalDamaged(f"the header should have {length:,} bytes, and the file has {self.size:,}", 0)
        text = self.file.read(length)
        self.crc = zlib.crc32(start + text)
        if self.file.read(4) != struct.pack("<I", self.crc):
            raise JournalDamaged("the header's bytes differ from the ones that were written", 0)
        self.offset = 12 + length
        self.header: Mapping[str, Any] = json_object(_decompressed(text), 0)

    def payloads(self) -> Iterator[tuple[int, bytes, int]]:
        """(kind, payload, offset) of each record."""
        while self.offset < self.size:
            found = self._next()
            if found is None:
                self.torn = self.size - self.offset
                return
            kind, payload, crc = found
            start, self.offset, self.crc = self.offset, self.offset + len(payload) + 10, crc
            yield kind, payload, start

    def _next(self) -> tuple[int, bytes, int] | None:
        """(kind, payload, crc) of the next record, or None where the file ends before it does. Raises JournalDamaged."""
        head, check = self.file.read(5), self.file.read(1)
        if not check:
            return None
        length, kind = struct.unpack("<IB", head)
        if check[0] != _check(head) or not 1 <= kind <= self.kinds or length > LARGEST:
            if not check[0] and self._rest_is_zero(check):
                return None
            raise JournalDamaged("a record's head differs from the one that was written", self.offset)
        if self.offset + 6 + length + 4 > self.size:
            return None
        payload = self.file.read(length)
        crc = zlib.crc32(head + check + payload, self.crc)
        written, whole = self.file.read(4), struct.pack("<I", crc)
        if written != whole:
            if any(written == whole[:k] + bytes(4 - k) for k in range(4)) and self._rest_is_zero(bytes(1)):
                return None
            raise JournalDamaged("a record's bytes differ from the ones that were written", self.offset)
        return kind, payload, crc

    def _rest_is_zero(self, first: bytes) -> bool:
        """Whether only zeros follow: a file that was lengthened before a loss of power, and not written to its end."""
        while first:
            if any(first):
                return False
            first = self.file.read(min(1 << 16, self.size - self.file.tell()))
        return True


class LogWriter:
    """A log that is being written, and locked while it is. Every record is in the system's hands when `append` returns;
    an append syncs the file when the last sync is more than a second ago.

    Make one with `create` or `reopen`. offset, crc: after the records that were written.
    """

    def __init__(self, path: Path, handle: int, offset: int, crc: int) -> None:
        self.path = path
        self.offset = offset
        self.crc = crc
        self._handle = handle
        self._synced = time.monotonic()

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Self:
        """Begin a log in a new file. Raises FileExistsError, FileLocked, or OSError when it cannot be written."""
        made = header_bytes(header)
        if path.exists():
            raise FileExistsError(f"{path} is there; name another file")
        partial = path.with_name(f".{path.name}.partial")
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o644)
        try:
            lock(handle, path)
            write_all(handle, made)
            os.fsync(handle)
            partial.rename(path)  # a log has a whole header, or is not there
            sync_folder(path.parent)
        except BaseException:
            os.close(handle)
            partial.unlink(missing_ok=True)
            raise
        return cls(path, handle, len(made), int.from_bytes(made[-4:], "little"))

    @classmethod
    def reopen_with(cls, path: Path, read: Callable[[BinaryIO, int], LogReader]) -> tuple[Self, LogReader]:
        """Go on with a log: (writer, the reader that has read it all). A torn record at its end is cut off.

        read: reads the whole of a file of some bytes.
        Raises FileLocked, JournalDamaged, or OSError.
        """
        handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            lock(handle, path)
            with os.fdopen(os.dup(handle), "rb") as file:
                reader = read(file, os.fstat(handle).st_size)
            if reader.torn:
                os.ftruncate(handle, reader.offset)
                os.fsync(handle)
            os.lseek(handle, reader.offset, os.SEEK_SET)
        except BaseException:
            os.close(handle)
            raise
        return cls(path, handle, reader.offset, reader.crc), reader

    def append(self, kind: int, payload: bytes) -> None:
        """Append a record. Raises OSError when it cannot be written; the log is then as it was before."""
        made = record_bytes(kind, payload, self.crc)
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

    def sync(self) -> None:
        """Have everything on the disk: before anything that depends on it is, or is reported final."""
        os.fsync(self._handle)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync, and let others write."""
        try:
            self.sync()
        finally:
            os.close(self._handle)


def json_object(text: bytes, offset: int) -> dict[str, Any]:
    """A JSON object from a record at an offset. Raises JournalDamaged."""
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise JournalDamaged("bytes that should be JSON are not", offset) from None
    if not isinstance(found, dict):
        raise JournalDamaged("bytes that should be a JSON object are another value", offset)
    return found


def _decompressed(text: bytes) -> bytes:
    """The content, of at most LARGEST bytes, of a header that is a whole zlib stream; any other as it is."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(text, LARGEST) if text[:1] == b"x" else b""
    except zlib.error:
        return text
    return found if stream.eof and not stream.unused_data else text


def _check(head: Sequence[int]) -> int:
    found = 0x5A
    for byte in head:
        found ^= byte
    return found
