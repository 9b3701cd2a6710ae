"""Environment variables for torch's libraries, to be set before torch is imported."""

from __future__ import annotations

import os

KERNEL_SHAPES = 32
"""The most shapes of matrix products for which oneDNN keeps compiled kernels."""

SETTINGS = {
    # oneDNN compiles a kernel per shape and keeps 1,024 kernels: batches with ever new lengths fill hundreds of megabytes.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(KERNEL_SHAPES),
    "LRU_CACHE_CAPACITY": str(KERNEL_SHAPES),
    # Between two operations OpenMP's workers spin, which slows zerograd's own threads; asleep, they are slow to wake for the many
    # small operations of a generation. Some 20 us of spinning serve both: of a generation it takes a fifth of the time away.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "2000",
}


def prepare() -> None:
    """Set the variables that are not set yet. A late call still bounds oneDNN before its first product."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
