"""Hidden states on disk: what frozen layers give for an example is computed once and read in every later epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch


class HiddenCache:
    """Hidden states by the tokens they come from, in an unnamed file that goes when the process does.

    For causal decoders with rows padded on the right: no token sees the padding, so it is left out and read back as zeros.
    When the disk is full nothing more is kept, and the rest is computed as often as it is asked for.
    folder: an existing one, on the disk that takes the file. width: of a hidden state. dtype: of the model.
    Raises OSError when no file can be made there.
    """

    def __init__(self, folder: Path, width: int, dtype: torch.dtype) -> None:
        self.width = width
        self.dtype = dtype
        self.bytes = 0
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # open as long as the cache
        self._starts: dict[bytes, int] = {}
        self._full = False

    def hidden(self, ids: torch.Tensor, lengths: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The hidden states of rows of tokens: (rows, tokens, width).

        ids: int64 (rows, tokens). lengths: int64 (rows,), the tokens of each row before its padding. compute: the hidden
        states of some of the rows.
        """
        hidden = torch.zeros((*ids.shape, self.width), dtype=self.dtype)
        rows = [row[:length] for row, length in zip(hidden, lengths.tolist(), strict=True)]
        keys = [row[: len(kept)].numpy().tobytes() for row, kept in zip(ids, rows, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self._starts]
        for i in set(range(len(keys))).difference(missing):
            self._read(self._starts[keys[i]], rows[i])
        if missing:
            hidden[missing] = compute(ids[missing])
            for i in missing:
                self._write(keys[i], rows[i])
        return hidden

    def _read(self, start: int, row: torch.Tensor) -> None:
        self._file.seek(start)
        if self._file.readinto(_bytes(row)) != row.nbytes:
            raise OSError("the cache of hidden states was cut short; is its disk still there?")

    def _write(self, key: bytes, row: torch.Tensor) -> None:
        if self._full:
            return
        self._file.seek(self.bytes)
        try:
            self._full = self._file.write(_bytes(row)) != row.nbytes
        except OSError:
            self._full = True
        if not self._full:
            self._starts[key] = self.bytes
            self.bytes += row.nbytes


def _bytes(row: torch.Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return memoryview(row.view(torch.uint8).view(-1).numpy())  # type: ignore[arg-type]
