"""The process's peak memory, by phase, and what keeps it down."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

KERNEL_SHAPES = 32
"""Shapes of matrix products that are kept compiled."""


def bound_kernel_caches() -> None:
    """Keep few compiled matrix products; to be called before the process's first one, what is set by hand stays.

    On a CPU oneDNN compiles a product for every shape and keeps 1,024 of them: batches of ever new lengths fill hundreds of
    megabytes, and compiling anew what has been forgotten costs no measurable time.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNEL_SHAPES))


def reset_peak() -> None:
    """Start a new phase: on Linux what the last one has freed goes back to the system, and the peak falls to what is
    resident now; elsewhere the peak stays the process's.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """The most memory that has been resident since the last reset, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
