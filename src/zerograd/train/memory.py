"""The process's peak memory, by phase."""

from __future__ import annotations

import resource
from pathlib import Path


def reset_peak() -> None:
    """Start a new phase: on Linux the peak falls back to what is resident now; elsewhere it stays the process's."""
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
