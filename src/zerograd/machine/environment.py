"""What torch's libraries read from the environment; to be set before torch is imported."""

from __future__ import annotations

import os

KERNEL_SHAPES = 32
"""Shapes of matrix products that oneDNN keeps compiled."""

SETTINGS = {
    # oneDNN compiles a product for every shape and keeps 1,024 of them: batches of ever new lengths fill hundreds of megabytes.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(KERNEL_SHAPES),
    "LRU_CACHE_CAPACITY": str(KERNEL_SHAPES),
    # Between two operations OpenMP's workers spin, in the way of our own threads.
    "OMP_WAIT_POLICY": "passive",
}


def prepare() -> None:
    """Set what is not set by hand. Late calls still bound oneDNN until its first product."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
