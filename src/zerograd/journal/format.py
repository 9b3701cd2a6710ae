"""The journal's bytes: a header that says what a run is, then one checksummed record a step (docs/journal.md).

    file     magic "zgj1"   length u32   header (JSON, UTF-8)   crc u32
    record   length u32     kind u8      check u8               payload (length bytes)   crc u32

All numbers are little-endian. A crc is CRC-32 over everything before it, from the file's first byte on, so that a record which is
changed, missing or moved does not fit. check is the exclusive or of the bytes of length and kind, so that a changed length is not
taken for a record that was cut short. Step n is the n-th record of kind STEP, DECAYED or SKIP.

    STEP      loss f32, then per group lr f32, then per group the multiplier of each direction f32
    DECAYED   the same with lr f32, decay f32 per group: what the weights are multiplied by first
    SKIP      loss f32; nothing was updated
    RESTORE   step u32: the weights go back to those after so many steps; then JSON, what else is to be known
    NOTE      JSON: nothing that weights depend on
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from zerograd.update.apply import Skip, Step

MAGIC = b"zgj1"

STEP, DECAYED, SKIP, RESTORE, NOTE = range(1, 6)

MOST = 64 << 20
"""Bytes of a header or record, at most; a length beyond is damage."""


class JournalDamaged(ValueError):
    """Bytes are not what was written. offset: of the header or record that they are in."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what}, at byte {offset}")
        self.offset = offset


@dataclass(frozen=True)
class Restore:
    """The weights went back to those after `step` steps. note: what else is to be known."""

    step: int
    note: Mapping[str, Any]


@dataclass(frozen=True)
class Note:
    """What is to be known of the run, and no weight depends on."""

    note: Mapping[str, Any]


Record = Step | Skip | Restore | Note


def to_header(fields: Mapping[str, Any]) -> bytes:
    """The first bytes of a journal, its crc included."""
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    if len(text) > MOST:
        raise ValueError(f"the header has {len(text):,} bytes, more than {MOST:,}")
    made = MAGIC + struct.pack("<I", len(text)) + text
    return made + struct.pack("<I", zlib.crc32(made))


def to_bytes(record: Record, crc: int) -> bytes:
    """A record behind one whose crc is given, its own included. Raises ValueError for a note that is no JSON or is too long."""
    if isinstance(record, Step):
        kind = STEP if record.decays is None else DECAYED
        rates = record.lrs if record.decays is None else np.stack([record.lrs, record.decays], 1)
        payload = struct.pack("<f", record.loss) + _floats(rates) + _floats(record.multipliers)
    elif isinstance(record, Skip):
        kind, payload = SKIP, struct.pack("<f", record.loss)
    elif isinstance(record, Restore):
        kind, payload = RESTORE, struct.pack("<I", record.step) + json.dumps(record.note, allow_nan=False).encode()
    else:
        kind, payload = NOTE, json.dumps(record.note, allow_nan=False).encode()
    if len(payload) > MOST:
        raise ValueError(f"a record has {len(payload):,} bytes, more than {MOST:,}")
    head = struct.pack("<IB", len(payload), kind)
    made = head + bytes([_check(head)]) + payload
    return made + struct.pack("<I", zlib.crc32(made, crc))


@dataclass
class Reader:
    """Reads a journal from its beginning; no more is held than the header and a record, and no length is trusted before it is seen
    to fit the file.

    header: its fields. crc, offset: of what was read so far. steps: records of steps until then. torn: bytes at the end that are
    the beginning of a record, known when all others were read.
    """

    file: BinaryIO
    size: int

    def __post_init__(self) -> None:
        self.offset = self.crc = self.steps = self.torn = 0
        start = self.file.read(8)
        if len(start) < 8 or start[:4] != MAGIC:
            raise JournalDamaged("this is no journal: it does not begin with zgj1 and a header", 0)
        (length,) = struct.unpack("<I", start[4:])
        if length > min(MOST, self.size - 12):
            raise JournalDamaged(f"the header is said to have {length:,} bytes, and the file has {self.size:,}", 0)
        text = self.file.read(length)
        self.crc = zlib.crc32(start + text)
        if self.file.read(4) != struct.pack("<I", self.crc):
            raise JournalDamaged("the header's bytes are not those that were written", 0)
        self.offset = 12 + length
        found = _json(text, 0)
        groups = found.get("groups")
        if not isinstance(groups, int) or isinstance(groups, bool) or not 1 <= groups <= 1 << 16:
            raise JournalDamaged(f"the header has {groups!r} groups", 0)
        self.header: Mapping[str, Any] = found
        self.groups = groups

    def __iter__(self) -> Iterator[Record]:
        while self.offset < self.size:
            found = self._record()
            if found is None:
                self.torn = self.size - self.offset
                return
            yield found

    def _record(self) -> Record | None:
        """The next record, or None where the file ends before it does. Raises JournalDamaged."""
        head, check = self.file.read(5), self.file.read(1)
        if not check:
            return None
        length, kind = struct.unpack("<IB", head)
        if check[0] != _check(head) or not STEP <= kind <= NOTE or length > MOST:
            if not check[0] and self._rest_is_zero(check):
                return None
            raise JournalDamaged("a record's head is not what was written", self.offset)
        end = self.offset + 6 + length + 4
        if end > self.size:
            return None
        payload = self.file.read(length)
        crc = zlib.crc32(head + check + payload, self.crc)
        written, whole = self.file.read(4), struct.pack("<I", crc)
        if written != whole:
            if any(written == whole[:k] + bytes(4 - k) for k in range(4)) and self._rest_is_zero(bytes(1)):
                return None
            raise JournalDamaged("a record's bytes are not those that were written", self.offset)
        found = self._parsed(kind, payload)
        self.offset, self.crc = end, crc
        return found

    def _rest_is_zero(self, first: bytes) -> bool:
        """Whether nothing but zeros follows: a file that was lengthened before a loss of power, and not written to its end."""
        while first:
            if any(first):
                return False
            first = self.file.read(min(1 << 16, self.size - self.file.tell()))
        return True

    def _parsed(self, kind: int, payload: bytes) -> Record:
        if kind == NOTE:
            return Note(_json(payload, self.offset))
        if len(payload) < 4:
            raise JournalDamaged("a record is too short for its kind", self.offset)
        if kind == RESTORE:
            (step,) = struct.unpack_from("<I", payload)
            if step > self.steps:
                raise JournalDamaged(f"step {step} is to be gone back to after {self.steps} steps", self.offset)
            return Restore(step, _json(payload[4:], self.offset))
        (loss,) = struct.unpack_from("<f", payload)
        values = np.frombuffer(payload, "<f4", offset=4) if len(payload) % 4 == 0 else np.empty(0, np.float32)
        number, self.steps = self.steps, self.steps + 1
        if kind == SKIP and len(payload) == 4:
            return Skip(number, loss)
        rates = self.groups * (2 if kind == DECAYED else 1)
        rest = len(values) - rates
        if kind == SKIP or rest < self.groups or rest % self.groups:
            raise JournalDamaged("a record of a step has not the length of its groups' directions", self.offset)
        multipliers = values[rates:].reshape(self.groups, -1)
        if kind == STEP:
            return Step(number, loss, values[:rates], None, multipliers)
        pairs = values[:rates].reshape(self.groups, 2)
        return Step(number, loss, pairs[:, 0], pairs[:, 1], multipliers)


def finite(value: Any) -> Any:
    """A value for a note: numbers that JSON has none for are None."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _floats(values: npt.ArrayLike) -> bytes:
    return np.asarray(values, "<f4").tobytes()


def _check(head: Sequence[int]) -> int:
    found = 0x5A
    for byte in head:
        found ^= byte
    return found


def _json(text: bytes, offset: int) -> dict[str, Any]:
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise JournalDamaged("what should be JSON is none", offset) from None
    if not isinstance(found, dict):
        raise JournalDamaged("what should be a JSON object is none", offset)
    return found
