"""A tensor's memory as bytes, to hash, write and read into."""

from __future__ import annotations

import torch


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU; nothing is copied.

    Raises RuntimeError or TypeError for any other tensor.
    """
    flat = tensor.detach().view(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(bytearray())  # type: ignore[arg-type]
