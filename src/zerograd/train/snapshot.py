"""Trained weights as they were, on disk: memory does not grow by a copy of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from zerograd.apply import uninterrupted
from zerograd.spaces.weights import Slot


class Snapshot:
    """The trained tensors of a model, bit for bit, in a file that only this process reads and that goes with it."""

    def __init__(self, path: Path, slots: Sequence[Slot]) -> None:
        self.path = path
        self.slots = slots

    def take(self) -> None:
        """Write the weights as they are now; an older snapshot is there until the new one is whole. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                for tensor in self._tensors():
                    file.write(_bytes(tensor.cpu()))
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def restore(self) -> None:
        """Set the weights to what they were when the snapshot was taken."""
        with self.path.open("rb") as file, uninterrupted():
            for tensor in self._tensors():
                read = tensor if tensor.device.type == "cpu" else torch.empty_like(tensor, device="cpu")
                if file.readinto(_bytes(read)) != read.nbytes:
                    raise OSError(f"{self.path} was cut short; the weights are partly older")
                if read is not tensor:
                    tensor.copy_(read)

    def remove(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)

    def _tensors(self) -> Iterator[torch.Tensor]:
        for slot in self.slots:
            yield slot.parameter.detach()
            if slot.remainder is not None:
                yield slot.remainder


def _bytes(tensor: torch.Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
