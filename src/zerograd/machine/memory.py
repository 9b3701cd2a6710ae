"""The process's peak memory, by phase."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

M_MMAP_THRESHOLD = -3
"""A name of glibc's malloc.h."""


def reset_peak() -> None:
    """Start a new phase: on Linux what the last one has freed goes back to the system, and the peak falls to what is
    resident now; elsewhere the peak stays the process's.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # a C library of glibc's kind
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back_at_once() -> None:
    """From now on tensors of 1 MB and more go back to the system as soon as they are freed, where the C library is glibc's. It
    keeps them otherwise, and the few that checkpointing keeps lie between those that it frees: two to three times their memory.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def peak_bytes() -> int:
    """The most memory that has been resident since the last reset, in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
