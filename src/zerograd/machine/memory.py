"""Memory of the process and of the computer: the peak of a phase, and what is free now."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

import torch

M_MMAP_THRESHOLD = -3
"""A name of glibc's malloc.h."""

PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
"""Where Linux shows processes, and control groups: what a container may have."""

FREE_WHERE_UNKNOWN = 4 << 30
"""Bytes that count as free where the system reports nothing."""

GROUP_FILES = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("memory.max", "memory.current", "inactive_file"),
)
"""Of control groups of version 1 and of version 2: the files of the limit and of what is used, and which of it is file contents."""


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


def free_bytes() -> int:
    """Bytes that can be allocated now without swapping, on the accelerator where there is one; 4 GB where nothing is reported."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = host_bytes()
    return FREE_WHERE_UNKNOWN if free is None else free


def host_bytes(proc: Path = PROC, groups: Path = CONTROL_GROUPS) -> int | None:
    """Bytes of the machine or its container that can be allocated now without swapping; None where nothing is reported."""
    found = [left for _, left in container(proc, groups)]
    with contextlib.suppress(OSError, StopIteration):
        lines = (proc / "meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    return min(found, default=None)


def container(proc: Path = PROC, groups: Path = CONTROL_GROUPS) -> list[tuple[int, int]]:
    """(limit, what is left of it) in bytes, of each control group above this process that has a limit of memory.

    Files that were read and can be forgotten count as left, as they do in the machine's own MemAvailable. proc, groups: where Linux
    shows processes, and control groups of version 1 or 2.
    """
    with contextlib.suppress(OSError):
        lines = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
        kinds = [(kind, path) for _, kind, path in lines if not kind or "memory" in kind.split(",")]
        found = [_left(folder, not kind) for kind, path in kinds for folder in _above(groups / ("memory" if kind else ""), path)]
        return [pair for pair in found if pair is not None]
    return []


def _above(root: Path, path: str) -> list[Path]:
    """A control group's folder and those above it; a container may see itself as the root."""
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _left(group: Path, second: bool) -> tuple[int, int] | None:
    """A control group's limit and what is left of it; None where it has none. second: whether it is of version 2."""
    limit, used, old = GROUP_FILES[second]
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        most, now = (int((group / name).read_text()) for name in (limit, used))
        lines = (group / "memory.stat").read_text().splitlines() if (group / "memory.stat").exists() else []
        forgettable = sum(int(line.split()[1]) for line in lines if line.split()[0] == old)
        return most, max(0, most - max(0, now - forgettable))
    return None
