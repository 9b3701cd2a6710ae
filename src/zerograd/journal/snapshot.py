"""Trained weights as they were, on disk: memory does not grow by a copy of them."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zerograd.machine.files import sync_folder
from zerograd.machine.interrupts import uninterrupted
from zerograd.machine.tensor_bytes import tensor_bytes
from zerograd.spaces import Space
from zerograd.update import Memory

_TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


class Snapshot:
    """Every stored tensor of some spaces and a method's memory, bit for bit: a safetensors file, whole or not there."""

    def __init__(self, path: Path, spaces: Sequence[Space], memory: Memory) -> None:
        self.path = path
        self.spaces = spaces
        self.memory = memory

    def take(self, about: Mapping[str, Any] | None = None) -> None:
        """Write the weights as they are now and have them on the disk; an older snapshot is there until then.

        Raises OSError.

        about: what `about` gives back, JSON.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                file.write(self._header(about or {}))
                for _, tensor in self._tensors():
                    file.write(tensor_bytes(tensor.cpu().contiguous()))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
            sync_folder(self.path.parent)
        finally:
            partial.unlink(missing_ok=True)

    def about(self) -> Mapping[str, Any] | None:
        """What was said of a snapshot when it was taken, or None where there is none, or it is not what was written."""
        try:
            with self.path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > os.fstat(file.fileno()).st_size:
                    return None
                text = file.read(length)
                found = json.loads(text)["__metadata__"]
                hashed = hashlib.blake2b(digest_size=16)
                while chunk := file.read(1 << 20):
                    hashed.update(chunk)
            said: Mapping[str, Any] = json.loads(found["about"])
            return said if hashed.hexdigest() == found["digest"] and text == self._header_text(said, found["digest"]) else None
        except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError):
            return None

    def restore(self) -> None:
        """Set the weights to what they were when the snapshot was taken.

        Raises OSError when it is not there or was cut short.
        """
        with self.path.open("rb") as file, uninterrupted():
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            for _, tensor in self._tensors():
                direct = tensor.device.type == "cpu" and tensor.is_contiguous()
                read = tensor if direct else torch.empty(tensor.shape, dtype=tensor.dtype)
                if file.readinto(tensor_bytes(read)) != read.nbytes:
                    raise OSError(f"{self.path} was cut short; the weights are partly older")
                if read is not tensor:
                    tensor.copy_(read)

    def remove(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)

    def _header(self, about: Mapping[str, Any]) -> bytes:
        hashed = hashlib.blake2b(digest_size=16)
        for _, tensor in self._tensors():
            hashed.update(tensor_bytes(tensor.cpu().contiguous()))
        text = self._header_text(about, hashed.hexdigest())
        return struct.pack("<Q", len(text)) + text

    def _header_text(self, about: Mapping[str, Any], digest: str) -> bytes:
        fields: dict[str, Any] = {"__metadata__": {"about": json.dumps(about), "digest": digest}}
        start = 0
        for name, tensor in self._tensors():
            stop = start + tensor.nbytes
            fields[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(fields).encode()
        return text + b" " * (-len(text) % 8)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for space in self.spaces:
            for suffix, tensor in space.stored().items():
                yield f"{space.name}{suffix}", tensor
        for name, tensor in self.memory.tensors.items():
            yield f"memory.{name}", tensor
