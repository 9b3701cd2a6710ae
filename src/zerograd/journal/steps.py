"""The records of a run's journal, one a step.

Step n is the n-th record of kind STEP, DECAYED or SKIP.

    RADII     radius f32 of each group, for the steps from here on
    STEP      loss f32, then lr f32 of each group, then the coefficient f32 of each direction
    DECAYED   the same with lr and decay f32 of each group: decay is the factor of the weights before the change
    SKIP      loss f32; nothing was updated
    RESTORE   step u32: the weights go back to the ones after that many steps; then JSON, a note
    NOTE      JSON, on which no weight depends
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zerograd.errors import JournalDamaged
from zerograd.journal.log import LogReader, LogWriter, json_object
from zerograd.update import Skip, Step

STEP, DECAYED, SKIP, RESTORE, NOTE, RADII = range(1, 7)


@dataclass(frozen=True)
class Restore:
    """The weights went back to those after `step` steps. note: JSON."""

    step: int
    note: Mapping[str, Any]


@dataclass(frozen=True)
class Note:
    """A JSON note of the run, on which no weight depends."""

    note: Mapping[str, Any]


Record = Step | Skip | Restore | Note


def encode(record: Record) -> tuple[int, bytes]:
    """(kind, payload) of a record; a step's radii are not in its own. Raises ValueError for a note that is no JSON."""
    if isinstance(record, Step):
        by_group = record.lrs if record.decays is None else np.stack([record.lrs, record.decays], 1)
        kind = STEP if record.decays is None else DECAYED
        return kind, struct.pack("<f", record.loss) + _floats(by_group) + _floats(record.coefficients)
    if isinstance(record, Skip):
        return SKIP, struct.pack("<f", record.loss)
    note = json.dumps(record.note, allow_nan=False).encode()
    return (RESTORE, struct.pack("<I", record.step) + note) if isinstance(record, Restore) else (NOTE, note)


class Reader(LogReader):
    """Reads the records of a journal. steps: records of steps that were read. groups: parameter groups of the run."""

    def __post_init__(self) -> None:
        self.kinds = RADII
        super().__post_init__()
        self.steps = 0
        self.radii = np.empty(0, np.float32)
        groups = self.header.get("groups")
        if not isinstance(groups, int) or isinstance(groups, bool) or not 1 <= groups <= 1 << 16:
            raise JournalDamaged(f"the header has {groups!r} groups", 0)
        self.groups = groups

    def __iter__(self) -> Iterator[Record]:
        for kind, payload, offset in self.payloads():
            if kind == RADII:
                self._take_radii(payload, offset)
            else:
                yield self._decode(kind, payload, offset)

    def _take_radii(self, payload: bytes, offset: int) -> None:
        if len(payload) != 4 * self.groups:
            raise JournalDamaged(f"a record of radii has {len(payload)} bytes for {self.groups} groups", offset)
        self.radii = np.frombuffer(payload, "<f4")
        if not (self.radii > 0).all():
            raise JournalDamaged("a radius is not above 0", offset)

    def _decode(self, kind: int, payload: bytes, offset: int) -> Record:
        if kind == NOTE:
            return Note(json_object(payload, offset))
        if len(payload) < 4:
            raise JournalDamaged("a record is too short for its kind", offset)
        if kind == RESTORE:
            (step,) = struct.unpack_from("<I", payload)
            if step > self.steps:
                raise JournalDamaged(f"the weights should go back to step {step} after {self.steps} steps", offset)
            return Restore(step, json_object(payload[4:], offset))
        (loss,) = struct.unpack_from("<f", payload)
        values = np.frombuffer(payload, "<f4", offset=4) if len(payload) % 4 == 0 else np.empty(0, np.float32)
        number, self.steps = self.steps, self.steps + 1
        if kind == SKIP and len(payload) == 4:
            return Skip(number, loss)
        fields = 2 if kind == DECAYED else 1
        if kind == SKIP or len(values) <= fields * self.groups:
            raise JournalDamaged("a record of a step is too short for its groups and directions", offset)
        if not len(self.radii):
            raise JournalDamaged("a step stands before any radii", offset)
        by_group = values[: fields * self.groups].reshape(self.groups, fields)
        decays = by_group[:, 1] if kind == DECAYED else None
        return Step(number, loss, values[fields * self.groups :], by_group[:, 0], self.radii, decays)


class Writer(LogWriter):
    """Writes the records of a run's journal. Each is in the system's hands before the update that it describes.

    radii: of the groups, as the journal has them so far; a step with other ones is preceded by a record of its own.
    """

    radii: npt.NDArray[np.float32] = np.empty(0, np.float32)

    @classmethod
    def reopen(
        cls, path: Path, each: Callable[[Record], None], marks: list[tuple[int, int]] | None = None
    ) -> tuple[Writer, Mapping[str, Any], int]:
        """Go on with a journal. each: is told its records. marks: is given (offset, crc) of the header's and each
        record's end.

        Returns (writer, header, bytes of a torn record that were cut).
        Raises FileLocked, JournalDamaged, or OSError.
        """

        def read(file: Any, size: int) -> LogReader:
            reader = Reader(file, size)
            found = [(reader.offset, reader.crc)]
            for record in reader:
                each(record)
                found.append((reader.offset, reader.crc))
            if marks is not None:
                marks.extend(found)
            return reader

        writer, reader = cls.reopen_with(path, read)
        assert isinstance(reader, Reader)
        writer.radii = reader.radii
        return writer, reader.header, reader.torn

    def add(self, record: Record) -> None:
        """Append a record. Raises OSError when it cannot be written; no part of it is then in the journal."""
        if isinstance(record, Step) and not np.array_equal(record.radii, self.radii):
            self.append(RADII, _floats(record.radii))
            self.radii = record.radii
        self.append(*encode(record))

    def restore(self, step: int, note: Mapping[str, Any]) -> None:
        """Append that the weights go back to those after some steps, and make it durable."""
        self.add(Restore(step, finite(note)))
        self.sync()

    def note(self, note: Mapping[str, Any]) -> None:
        """Append a note."""
        self.add(Note(finite(note)))


def finite(value: Any) -> Any:
    """A value for a note: numbers that JSON lacks become None."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _floats(values: npt.ArrayLike) -> bytes:
    return np.asarray(values, "<f4").tobytes()
