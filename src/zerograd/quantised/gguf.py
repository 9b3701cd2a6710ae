"""GGUF files: where each tensor lies, its bytes, and copies whose tensors have other bytes.

A file is a header of named values, a table of tensors, and their data. Reading it needs no library.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from zerograd.machine.tensor_bytes import tensor_bytes
from zerograd.quantised.formats import FORMATS

FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16, 28: torch.float64}
"""The types of unpacked tensors, by their number."""

BY_TYPE = {format.type: format for format in FORMATS.values()}

OTHER_TYPES = {
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    9: "Q8_1",
    15: "Q8_K",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
}
"""Types that nothing here reads, for messages."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST = 1 << 24
"""Entries of a table or dimensions that no file has more of."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file.

    shape: rows first, as torch has it. type: its number. start, nbytes: where its data lie in the file. entry_at: where its type
    and offset stand in the table.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    nbytes: int
    entry_at: int

    @property
    def type_name(self) -> str:
        """Its type's name."""
        return type_name(self.type)


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    values: its named values, without long lists. tensors: in the order of its table. data: where the first tensor's data begin.
    """

    path: Path
    values: Mapping[str, Any]
    tensors: tuple[Entry, ...]
    alignment: int
    data: int

    def __getitem__(self, name: str) -> Entry:
        return next(entry for entry in self.tensors if entry.name == name)

    def read(self, entry: Entry) -> Tensor:
        """A tensor's data: uint8 (rows, bytes of a row) for a packed matrix, else floats of its shape."""
        raw = torch.empty(entry.nbytes, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(entry.start)
            if file.readinto(tensor_bytes(raw)) != entry.nbytes:
                raise ValueError(f"{self.path} ends within tensor {entry.name}; fetch it again")
        if entry.type in FLOATS:
            return raw.view(FLOATS[entry.type]).view(entry.shape)
        return raw.view(*entry.shape[:-1], BY_TYPE[entry.type].row_bytes(entry.shape[-1]))


def type_name(number: int) -> str:
    """The name of a type."""
    if number in BY_TYPE:
        return BY_TYPE[number].name
    named = {0: "F32", 1: "F16", 30: "BF16", 28: "F64"} | OTHER_TYPES
    return named.get(number, f"number {number}")


def header(path: Path) -> Header:
    """The header of a file. Raises ValueError, in one line, for a file that is cut off, damaged, or of a kind that is not read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _parsed(path, _Reader(file, size), size)
        except (struct.error, EOFError, UnicodeDecodeError, OverflowError, RecursionError):
            raise ValueError(f"{path} is cut off or damaged in its header; fetch it again") from None


class _Reader:
    """Reads a header's values in order."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.at = file, size, 0

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > self.size:
            raise EOFError
        self.at += count
        return self.file.read(count)

    def skip(self, count: int) -> None:
        if count < 0 or self.at + count > self.size:
            raise EOFError
        self.at += count
        self.file.seek(self.at)

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))
        return value

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:
        """A value; None for a list, whose entries are passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise EOFError
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[inner]}"))
        elif inner == _STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            for _ in range(count):
                self.value(inner)
        return None


def _parsed(path: Path, reader: _Reader, size: int) -> Header:
    if reader.take(4) != b"GGUF":
        raise ValueError(f"{path} is no GGUF file: it does not begin with GGUF")
    version = reader.number("I")
    if version not in _VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise ValueError(f"{path} is a big-endian GGUF file; convert it with gguf-convert-endian")
        raise ValueError(f"{path} is a GGUF file of version {version}, and versions 2 and 3 are read; convert the model anew")
    count, named = reader.number("Q"), reader.number("Q")
    if count > _MOST or named > _MOST:
        raise EOFError
    values = {}
    for _ in range(named):
        name = reader.text()
        values[name] = reader.value(reader.number("I"))
    if int(values.get("split.count") or 1) > 1:
        raise ValueError(
            f"{path} is part {int(values.get('split.no') or 0) + 1} of {values['split.count']} of a GGUF file; "
            "join them with llama-gguf-split --merge"
        )
    alignment = int(values.get("general.alignment") or 32)
    if alignment <= 0 or alignment % 8:
        raise EOFError
    entries = [_entry(path, reader) for _ in range(count)]
    data = -(-reader.at // alignment) * alignment
    placed = tuple(replace(entry, start=data + entry.start) for entry in entries)
    for entry in placed:
        if entry.start + entry.nbytes > size:
            raise ValueError(
                f"{path} is cut off: tensor {entry.name} ends at byte {entry.start + entry.nbytes:,} of {size:,}; fetch it again"
            )
    return Header(path, values, placed, alignment, data)


def _entry(path: Path, reader: _Reader) -> Entry:
    name, dimensions = reader.text(), reader.number("I")
    if dimensions > 8:
        raise EOFError
    shape = tuple(reversed([reader.number("Q") for _ in range(dimensions)]))
    at = reader.at
    kind, start = reader.number("I"), reader.number("Q")
    values = 1
    for one in shape:
        values *= one
    if kind in FLOATS:
        nbytes = values * FLOATS[kind].itemsize
    elif kind in BY_TYPE and shape:
        try:
            nbytes = values // shape[-1] * BY_TYPE[kind].row_bytes(shape[-1]) if values else 0
        except ValueError as error:
            raise ValueError(f"{path}: tensor {name}: {error}") from None
    else:
        known = ", ".join(FORMATS)
        raise ValueError(
            f"{path}: tensor {name} has type {type_name(kind)}, which is not read; choose a file of F32, F16, BF16, {known}"
        )
    return Entry(name, shape, kind, start, nbytes, at)


Made = Callable[[], Tensor]
"""Makes the new data of a tensor when it is written: any contiguous tensor of its bytes."""


def write_patched(base: Header, out: Path, changed: Mapping[str, tuple[int, Made]]) -> None:
    """Write a copy of a file in which some tensors have other bytes, and perhaps other types.

    changed: by a tensor's name its type and what makes its data. Where no type changes, every other byte is the base's; otherwise
    the table's types and offsets follow. The file is whole or not there. Raises OSError.
    """
    nbytes = {
        entry.name: _bytes_of(entry, changed[entry.name][0]) if entry.name in changed else entry.nbytes for entry in base.tensors
    }
    same = all(changed[entry.name][0] == entry.type for entry in base.tensors if entry.name in changed)
    partial = out.with_name(f".{out.name}.partial")
    try:
        with base.path.open("rb") as source, partial.open("wb") as file:
            if same:
                _copy(source, file, 0, os.fstat(source.fileno()).st_size)
                for entry in base.tensors:
                    if entry.name in changed:
                        file.seek(entry.start)
                        file.write(_data(entry, changed[entry.name][1], nbytes[entry.name]))
            else:
                _rebuild(base, source, file, changed, nbytes)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _rebuild(
    base: Header, source: BinaryIO, file: BinaryIO, changed: Mapping[str, tuple[int, Made]], nbytes: Mapping[str, int]
) -> None:
    """As `write_patched`, where tensors change their size: data are laid anew, in the file's order."""
    _copy(source, file, 0, base.data)
    at = base.data
    for entry in sorted(base.tensors, key=lambda entry: entry.start):
        file.seek(entry.entry_at)
        kind = changed[entry.name][0] if entry.name in changed else entry.type
        file.write(struct.pack("<IQ", kind, at - base.data))
        file.seek(at)
        if entry.name in changed:
            file.write(_data(entry, changed[entry.name][1], nbytes[entry.name]))
        else:
            _copy(source, file, entry.start, entry.nbytes)
        at += nbytes[entry.name]
        padding = -at % base.alignment
        file.write(bytes(padding))
        at += padding


def _copy(source: BinaryIO, file: BinaryIO, start: int, count: int) -> None:
    source.seek(start)
    for part in _parts(count):
        file.write(source.read(part))


def _parts(count: int, each: int = 1 << 24) -> Iterator[int]:
    while count > 0:
        yield min(each, count)
        count -= each


def _bytes_of(entry: Entry, kind: int) -> int:
    values = 1
    for one in entry.shape:
        values *= one
    if kind in FLOATS:
        return values * FLOATS[kind].itemsize
    return values // entry.shape[-1] * BY_TYPE[kind].row_bytes(entry.shape[-1])


def _data(entry: Entry, made: Made, nbytes: int) -> memoryview:
    tensor = made().contiguous()
    if tensor.nbytes != nbytes:
        raise ValueError(f"tensor {entry.name} has {tensor.nbytes:,} bytes in place of {nbytes:,}")
    return memoryview(tensor_bytes(tensor))
