"""Hidden states on disk: what frozen layers give for an example is computed once and read in every later epoch."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zerograd.evaluate.shared_prefix import Entered
from zerograd.machine.tensor_bytes import tensor_bytes

_ROW = struct.Struct("<16sQI")
_ENTRY = struct.Struct("<III")


@dataclass(frozen=True)
class Source:
    """Rows of tokens that hidden states come from.

    tokens: int64 (rows, tokens) each, padded on the right: all that the states of a row depend on, such as its tokens
    and its attention. lengths: tokens of each row before its padding, whose states are not kept; of the whole row where
    the states of tokens depend on the padding.
    """

    tokens: tuple[torch.Tensor, ...]
    lengths: Sequence[int]


@dataclass(frozen=True)
class Layout:
    """Which source the states of a prefix come from, and what a row of them is like.

    sample: the states of some rows. sources: of each state, the place of its source; the rows of the first source are
    those that are kept together, each with the rows of the others that belong to it.
    """

    sample: Entered
    sources: tuple[int, ...]

    def fits(self, given: Sequence[Source]) -> bool:
        """Whether the sample, made of these sources, has a state for each of their tokens."""
        states = self.sample.states
        if len(states) != len(self.sources) or any(len(s.lengths) % len(given[0].lengths) for s in given):
            return False
        return all(s.shape[:2] == given[i].tokens[0].shape for s, i in zip(states, self.sources, strict=True))

    def zeros(self, given: Sequence[Source]) -> tuple[torch.Tensor, ...]:
        """States of sources, without values."""
        pairs = zip(self.sample.states, self.sources, strict=True)
        return tuple(torch.zeros((*given[i].tokens[0].shape, *s.shape[2:]), dtype=s.dtype) for s, i in pairs)

    def unpadded(self, states: Sequence[torch.Tensor], given: Sequence[Source], rows: Sequence[int]) -> list[list[torch.Tensor]]:
        """The states of rows of the first source, without those of padding. states: of these rows alone."""
        found: list[list[torch.Tensor]] = [[] for _ in rows]
        for state, place in zip(states, self.sources, strict=True):
            lengths = given[place].lengths
            each = len(lengths) // len(given[0].lengths)
            for at, row in enumerate(rows):
                found[at] += [state[at * each + i][: lengths[row * each + i]] for i in range(each)]
        return found

    def without_padding(self, entered: Entered, given: Sequence[Source]) -> Entered:
        """The same with zeros for the states of padding."""
        states, rows = self.zeros(given), range(len(given[0].lengths))
        _copy(self.unpadded(entered.states, given, rows), self.unpadded(states, given, rows))
        return Entered(states, entered.shared)


class HiddenCache:
    """Hidden states by what they come from, in two files of a run's folder: a run that goes on reads the bits that it
    had before, whatever rows share a batch with a row then.

    When the disk is full no more states are kept, and the others are computed in each epoch. Some processors round a
    row by the rows beside it, so a resumed run then ends within rounding of an uninterrupted one. The states of a batch
    are kept together, unless the disk is full: an entry of the index has their CRC-32 and its own. folder: an existing
    one. about: what all states come from. again: keep the files' contents, if they are about the same; else begin anew.
    Raises OSError when no file can be made there.
    """

    def __init__(self, folder: Path, about: str = "", again: bool = False) -> None:
        self.about = about
        self.bytes = 0
        self._paths = folder / "hidden.cache", folder / "hidden.index"
        mode = "r+b" if again and all(path.exists() for path in self._paths) else "w+b"
        files: list[Any] = [path.open(mode, buffering=0) for path in self._paths]
        self._rows, self._index = files
        self._starts: dict[bytes, int] = {}
        self._full = False
        self._load()

    def entered(self, layout: Layout, given: Sequence[Source], run: Callable[[list[int]], Entered]) -> Entered:
        """A batch where it enters the rest of a model; the states of padding are zeros.

        given: the sources of its states. run: the prefix on some rows of the first source, by their places.
        """
        states, rows = layout.zeros(given), range(len(given[0].lengths))
        views = layout.unpadded(states, given, rows)
        keys = _keys(given)
        missing = [i for i, key in enumerate(keys) if key not in self._starts]
        for i in set(rows).difference(missing):
            self._read(self._starts[keys[i]], views[i])
        shared = layout.sample.shared
        if missing or shared.has_tensors:  # what is the same for every row depends on the lengths to which rows are padded
            computed = run(missing or [0])
            shared = computed.shared
            _copy(layout.unpadded(computed.states, given, missing), [views[i] for i in missing])
            self._keep({keys[i]: views[i] for i in missing})
        return Entered(states, shared)

    def remove(self) -> None:
        """Forget everything."""
        self.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what they hold stays."""
        self._rows.close()
        self._index.close()

    def _read(self, start: int, states: Sequence[torch.Tensor]) -> None:
        self._rows.seek(start)
        for state in states:
            if self._rows.readinto(tensor_bytes(state)) != state.nbytes:
                raise OSError("the cache of hidden states was cut short; is its disk still there?")

    def _keep(self, rows: dict[bytes, Sequence[torch.Tensor]]) -> None:
        if self._full or not rows:
            return
        kept: list[tuple[bytes, int, int]] = []
        at, crc = self.bytes, 0
        try:
            self._rows.seek(at)
            for key, states in rows.items():
                self._full = any(self._rows.write(tensor_bytes(state)) != state.nbytes for state in states)
                if self._full:
                    break
                size = sum(state.nbytes for state in states)
                kept.append((key, at, size))
                for state in states:
                    crc = zlib.crc32(tensor_bytes(state), crc)
                at += size
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
        said = hashlib.blake2b(self.about.encode(), digest_size=16).digest()
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


def _keys(given: Sequence[Source]) -> list[bytes]:
    """Of each row of the first source, a hash of all tokens that its states come from, with their numbers."""
    keys = []
    for row in range(len(given[0].lengths)):
        found = hashlib.blake2b(digest_size=16)
        for source in given:
            each = len(source.lengths) // len(given[0].lengths)
            for i in range(row * each, (row + 1) * each):
                found.update(struct.pack("<Q", source.lengths[i]))
                for tokens in source.tokens:
                    found.update(tokens[i, : source.lengths[i]].numpy().tobytes())
        keys.append(found.digest())
    return keys


def _copy(states: Sequence[Sequence[torch.Tensor]], to: Sequence[Sequence[torch.Tensor]]) -> None:
    for some, others in zip(states, to, strict=True):
        for state, other in zip(some, others, strict=True):
            other.copy_(state)
