"""Noise is an address: z = noise(seed, step, direction, tensor, row, column), the same bits everywhere.

`fill`, `perturb`, `update` and `update_low_rank` run on Numba if it is installed, on Triton for CUDA tensors, and else
on the torch reference, and `uniform` on Numba or torch. All back ends give the same bits.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from types import ModuleType

import torch

from zerograd.noise import reference
from zerograd.noise.address import CHANCE, COMMON, DENSE, LAYOUT, LEFT, ORDER, RIGHT, ROUNDING, SAMPLE, Address, stream
from zerograd.noise.reference import FAMILIES, split, store, to_float

__all__ = [
    "CHANCE",
    "COMMON",
    "DENSE",
    "FAMILIES",
    "LAYOUT",
    "LEFT",
    "ORDER",
    "RIGHT",
    "ROUNDING",
    "SAMPLE",
    "Address",
    "backend",
    "is_fast",
    "split",
    "store",
    "stream",
    "to_float",
    "uniform",
]

_fast: ModuleType | None = None
_decided = False


def backend(weight: torch.Tensor) -> ModuleType:
    """The module with the fastest fill, perturb, update and update_low_rank for a tensor.

    The environment variable ZEROGRAD_NOISE=torch chooses the reference.
    """
    if weight.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from zerograd.noise import gpu

        return gpu if gpu.supports(weight) else reference
    return _fast if is_fast(weight) and _fast is not None else reference


def is_fast(*tensors: torch.Tensor) -> bool:
    """Whether Numba's kernels support all of these tensors."""
    global _fast, _decided
    if not _decided:
        _decided = True
        if os.environ.get("ZEROGRAD_NOISE") == "torch":
            pass
        elif importlib.util.find_spec("numba") is not None:
            from zerograd.noise import compiled

            _fast = compiled
        else:
            warnings.warn("Numba is not installed: noise is drawn by torch, with the same numbers, slower", stacklevel=2)
    return _fast is not None and all(_fast.supports(tensor) for tensor in tensors)


def uniform(address: Address, rows: torch.Tensor, columns: int) -> torch.Tensor:
    """Numbers in (0, 1) of the given rows, int64: float64 (rows, columns), on the device of the rows."""
    fast = _fast if rows.device.type == "cpu" and is_fast() else None
    made: torch.Tensor = (reference if fast is None else fast).uniform(address, rows, columns)
    return made
