"""Hidden states on disk: what frozen layers give for an example is computed once and read in every later epoch."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_ROW = struct.Struct("<16sQI")
_ENTRY = struct.Struct("<III")


class HiddenCache:
    """Hidden states by the tokens they come from, in two files of a run's folder: what a run that goes on reads again has the bits
    that it had, whatever rows it shares a batch with then.

    For causal decoders with rows padded on the right: no token sees the padding, so it is left out and read back as zeros.
    When the disk is full nothing more is kept, and the rest is computed as often as it is asked for, in batches whose other rows
    some processors round it by: a run that goes on from there then ends within rounding of one that was not cut off.
    The rows of a batch are kept together, unless the disk is full: an entry of the index has their CRC-32 and its own.
    folder: an existing one. width: of a hidden state. dtype: of the model. about: what else they come from. again: keep what is
    there, if it is about the same; else begin anew.
    Raises OSError when no file can be made there.
    """

    def __init__(self, folder: Path, width: int, dtype: torch.dtype, about: str = "", again: bool = False) -> None:
        self.width = width
        self.dtype = dtype
        self.about = about
        self.bytes = 0
        self._paths = folder / "hidden.cache", folder / "hidden.index"
        mode = "r+b" if again and all(path.exists() for path in self._paths) else "w+b"
        files: list[Any] = [path.open(mode, buffering=0) for path in self._paths]
        self._rows, self._index = files
        self._starts: dict[bytes, int] = {}
        self._full = False
        self._load()

    def hidden(self, ids: torch.Tensor, lengths: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The hidden states of rows of tokens: (rows, tokens, width).

        ids: int64 (rows, tokens). lengths: int64 (rows,), the tokens of each row before its padding. compute: the hidden
        states of some of the rows.
        """
        hidden = torch.zeros((*ids.shape, self.width), dtype=self.dtype)
        rows = [row[:length] for row, length in zip(hidden, lengths.tolist(), strict=True)]
        keys = [_key(row[: len(kept)]) for row, kept in zip(ids, rows, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self._starts]
        for i in set(range(len(keys))).difference(missing):
            self._read(self._starts[keys[i]], rows[i])
        if missing:
            hidden[missing] = compute(ids[missing])
            self._keep({keys[i]: rows[i] for i in missing})
        return hidden

    def remove(self) -> None:
        """Forget everything."""
        self.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what they hold stays."""
        self._rows.close()
        self._index.close()

    def _read(self, start: int, row: torch.Tensor) -> None:
        self._rows.seek(start)
        if self._rows.readinto(_bytes(row)) != row.nbytes:
            raise OSError("the cache of hidden states was cut short; is its disk still there?")

    def _keep(self, rows: dict[bytes, torch.Tensor]) -> None:
        if self._full:
            return
        kept: list[tuple[bytes, int, int]] = []
        at, crc = self.bytes, 0
        try:
            self._rows.seek(at)
            for key, row in rows.items():
                self._full = self._rows.write(_bytes(row)) != row.nbytes
                if self._full:
                    break
                kept.append((key, at, row.nbytes))
                crc = zlib.crc32(_bytes(row), crc)
                at += row.nbytes
            listed = b"".join(_ROW.pack(*one) for one in kept)
            entry = _ENTRY.pack(len(kept), crc, zlib.crc32(listed)) + listed
            if not kept or self._index.write(entry) != len(entry):
                self._full = True
                return
        except OSError:
            self._full = True
            return
        self._starts |= {key: start for key, start, _ in kept}
        self.bytes = at

    def _load(self) -> None:
        """Take what is whole; cut what is not."""
        said = hashlib.blake2b(f"{self.width} {self.dtype} {self.about}".encode(), digest_size=16).digest()
        size = os.fstat(self._rows.fileno()).st_size
        if self._index.read(len(said)) != said:
            size = 0
            self._index.seek(0)
            self._index.truncate(0)
            self._index.write(said)
        good = len(said)
        while found := _entry(self._index):
            crc, rows = found
            stop = self.bytes + sum(length for _, _, length in rows)
            self._rows.seek(self.bytes)
            if stop > size or rows[0][1] != self.bytes or zlib.crc32(self._rows.read(stop - self.bytes)) != crc:
                break
            self._starts |= {key: start for key, start, _ in rows}
            self.bytes, good = stop, self._index.tell()
        self._index.truncate(good)
        self._index.seek(good)


def _entry(index: Any) -> tuple[int, list[tuple[bytes, int, int]]] | None:
    """(CRC-32 of rows, (key, start, bytes) of each) of the next entry, or None where there is none that is whole."""
    head = index.read(_ENTRY.size)
    if len(head) < _ENTRY.size:
        return None
    count, crc, own = _ENTRY.unpack(head)
    left = os.fstat(index.fileno()).st_size - index.tell()
    if not 0 < count * _ROW.size <= left:
        return None
    listed = index.read(count * _ROW.size)
    return (crc, list(_ROW.iter_unpack(listed))) if zlib.crc32(listed) == own else None


def _key(ids: torch.Tensor) -> bytes:
    return hashlib.blake2b(ids.numpy().tobytes(), digest_size=16).digest()


def _bytes(row: torch.Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return memoryview(row.view(torch.uint8).view(-1).numpy())  # type: ignore[arg-type]
